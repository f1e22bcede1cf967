"""What a failed TLS handshake means, in words that name the setting to look at.

OpenSSL says what went wrong and not whose fault it is. What is refused here (the other side's certificate) and what is
refused there (ours) are told apart by who sent the alert; OpenSSL's own words stand at the end.
"""

import ssl

from msgspec import Struct

from sql.errors import sqlstate


class Peer(Struct, frozen=True):
    """The other side, and the settings that are about it."""

    name: str
    address: str
    authority: str
    certificate: str


BROKER = Peer("the broker", "MQTT_URL", "MQTT_CA_FILE", "MQTT_CERT_FILE and MQTT_KEY_FILE")
DATABASE = Peer("the database", "DATABASE_URL", "sslrootcert in DATABASE_URL", "sslcert and sslkey in DATABASE_URL")

# Codes of OpenSSL's X509_V_ERR_*: https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
_UNKNOWN_AUTHORITY = "no authority in {peer.authority} vouches for the certificate of {peer.name}"
_REFUSED_HERE: dict[int, str] = {
    9: "the certificate of {peer.name} is not valid yet, or the clock of this machine is wrong",
    10: "the certificate of {peer.name} has expired: renew it there",
    18: _UNKNOWN_AUTHORITY,
    19: _UNKNOWN_AUTHORITY,
    20: _UNKNOWN_AUTHORITY,
    21: _UNKNOWN_AUTHORITY,
    62: "the certificate of {peer.name} is for another name than the host in {peer.address}",
    64: "the certificate of {peer.name} is for another address than the host in {peer.address}",
}
_WANTED = "{peer.name} wants a client certificate: set {peer.certificate}"
_REFUSED_THERE: dict[str, str] = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _WANTED,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": _WANTED,
    "TLSV1_ALERT_UNKNOWN_CA": "{peer.name} does not know the authority of our certificate: look at {peer.certificate}",
    "SSLV3_ALERT_BAD_CERTIFICATE": "{peer.name} does not accept our certificate: look at {peer.certificate}",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired: renew {peer.certificate}",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "our certificate was revoked: renew {peer.certificate}",
    "WRONG_VERSION_NUMBER": "what answers does not speak TLS: look at host and port in {peer.address}",
    "KEY_VALUES_MISMATCH": "certificate and key do not belong together: look at {peer.certificate}",
    "NO_CERTIFICATE_OR_CRL_FOUND": "no certificate is in the file: look at {peer.authority}",
}


def in_words(error: BaseException, peer: Peer) -> str:
    """What to write into the log about an error of a connection; of one that is not about TLS, its own text."""
    return explain(error, peer) or str(error) or sqlstate(error)


def explain(error: BaseException, peer: Peer) -> str | None:
    """What a TLS error means; None where the error is none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__  # asyncpg hides the alert behind "connection was closed"
    if cause is None:
        return None
    if isinstance(cause, ssl.SSLCertVerificationError):
        meaning = _REFUSED_HERE.get(cause.verify_code, "the certificate of {peer.name} cannot be trusted")
    else:
        reason = getattr(cause, "reason", None) or ""  # not every one has the attribute
        meaning = _REFUSED_THERE.get(reason, "the connection to {peer.name} could not be secured")
    return f"{meaning.format(peer=peer)} ({cause})"
