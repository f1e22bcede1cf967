"""The broker: from its name to the daemon's subscription. `daemon.doctor` says what must not be disturbed."""

import asyncio
import ssl
import time
from collections.abc import Sequence

from mqtt5 import ConnAckPacket, QoS, RetainHandling, TopicFilter
from msgspec import Struct

from daemon.doctor.access import enter_as_daemon
from daemon.doctor.findings import Finding, failure, ok, skipped, warning
from daemon.doctor.probe import ClosedError, NotMqtt5Error, Probe, ProbeError, RefusedError
from daemon.subscriber import FIRST_ERROR_CODE, Broker
from sql import tls

DAYS_LEFT_MIN = 21
SESSION_EXPIRY_S_MIN = 24 * 3600
"""A broker that forgets the session sooner loses what came in over a weekend."""
_DAY_S = 86400
_LOOPBACK = ("127.", "::1")
_BAD_PASSWORD = (0x86, 0x87)
_BAD_CLIENT_ID = 0x85

_CERTIFICATE_REMEDIES = {
    10: "renew it: docs/broker.md, Renewing certificates",
    9: "set the clock of this machine, or of the one that made the certificate: timedatectl",
    62: "make a certificate with that name: mosquitto/certificates ca NAME..., or connect by a name that is in it",
}
"""By OpenSSL's number of what is wrong; all else is an authority that is not known."""
_UNKNOWN_AUTHORITY = "give MQTT_CA_FILE the ca.crt of the authority that signed the broker's certificate"


class Login(Struct, frozen=True):
    """What entering as the daemon has shown."""

    findings: Sequence[Finding]
    has_own_ids: bool = False
    """Whether the account may have several sessions."""


async def find_address(broker: Broker) -> tuple[Finding, str | None]:
    """Whether the name leads to an address, and the first one."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(broker.host, broker.port, type=1)
    except OSError as error:
        remedy = f"correct the name in MQTT_URL, or make it known: getent hosts {broker.host}"
        return failure("broker.name", f"{broker.host} has no address ({error.strerror or error})", remedy), None
    addresses = sorted({str(entry[4][0]) for entry in found})
    return ok("broker.name", f"{broker.host} is {', '.join(addresses)}"), addresses[0]


async def try_port(broker: Broker) -> Finding:
    """Whether something listens."""
    started_s = time.monotonic()
    try:
        async with await Probe.open(broker.host, broker.port, None):
            took_ms = (time.monotonic() - started_s) * 1000
    except TimeoutError:
        remedy = f"open port {broker.port} in the firewalls between this machine and the broker"
        return failure("broker.port", f"{broker.address} does not answer at all", remedy)
    except OSError as error:
        remedy = "start the broker: systemctl start mosquitto; journalctl -u mosquitto -n 20; or correct MQTT_URL"
        return failure("broker.port", f"{broker.address} refuses connections ({error.strerror or error})", remedy)
    return ok("broker.port", f"{broker.address} accepts connections ({took_ms:.0f} ms)")


async def try_tls(broker: Broker, address: str) -> Finding:
    """Whether the connection is encrypted and the certificate good."""
    name = "broker.tls"
    if broker.tls is None:
        if address.startswith(_LOOPBACK):
            return ok(name, "not encrypted, and the broker is on this machine")
        remedy = "give the broker a certificate (docs/broker.md) and MQTT_URL mqtts:// with port 8883"
        return warning(name, "not encrypted: passwords and readings can be read on the way", remedy)
    try:
        async with await Probe.open(broker.host, broker.port, broker.tls) as probe:
            return _judge_certificate(probe.tls_object)
    except ssl.SSLCertVerificationError as error:
        remedy = _CERTIFICATE_REMEDIES.get(error.verify_code, _UNKNOWN_AUTHORITY)
        return failure(name, tls.explain(error, tls.BROKER) or str(error), remedy)
    except ssl.SSLError as error:
        remedy = "correct the port in MQTT_URL, or give that listener cafile, certfile and keyfile"
        return failure(name, tls.explain(error, tls.BROKER) or str(error), remedy)
    except TimeoutError:
        remedy = "see what the broker does: journalctl -u mosquitto -n 20; top"
        return failure(name, f"{broker.address} accepts the connection and then says nothing", remedy)
    except (OSError, EOFError) as error:
        remedy = "correct the port in MQTT_URL, or give that listener cafile, certfile and keyfile"
        return failure(name, f"{broker.address} ends the TLS handshake ({error or type(error).__name__})", remedy)


def _judge_certificate(session: ssl.SSLObject | None) -> Finding:
    certificate = (session.getpeercert() if session else None) or {}
    ends = str(certificate.get("notAfter", ""))
    version = session.version() if session else None
    days = (ssl.cert_time_to_seconds(ends) - time.time()) / _DAY_S
    text = f"{version}, the certificate is good for {days:.0f} more days"
    if days < DAYS_LEFT_MIN:
        return warning("broker.tls", text, _CERTIFICATE_REMEDIES[10])
    return ok("broker.tls", text)


def trust(broker: Broker, daemons_broker: str) -> list[Finding]:
    """What a running daemon's subscription proves."""
    if daemons_broker != broker.address:
        text = f"the daemon is connected to {daemons_broker}, and MQTT_URL says {broker.address}"
        remedy = (
            "systemctl restart fleetwatt-daemon, or run the check with the daemon's own environment: docs/doctor.md"
        )
        because = "the daemon that runs has other settings"
        rest = [skipped(f"broker.{name}", because) for name in ("session", "subscribe")]
        return [skipped("broker.mqtt5", because), warning("broker.login", text, remedy), *rest]
    kept = "not tried: a second connection of its account could end its session"
    return [
        ok("broker.mqtt5", "the daemon speaks it with this broker now"),
        ok("broker.login", f"the daemon is connected ({kept})"),
        ok("broker.session", "the daemon is in it"),
        ok("broker.subscribe", "the daemon is subscribed"),
    ]


async def login(broker: Broker) -> Login:
    """Enter the daemon's session, as the daemon would, and leave it as it was."""
    try:
        async with await Probe.open(broker.host, broker.port, broker.tls) as probe:
            has_own_ids, connack = await _ask_for_id(probe, broker)
            if not has_own_ids and connack is not None:
                return Login(await _look_around(probe, broker, connack))
        async with await Probe.open(broker.host, broker.port, broker.tls) as probe:
            connack = await enter_as_daemon(probe, broker, broker.client_id)
            return Login(await _look_around(probe, broker, connack), has_own_ids)
    except (ProbeError, OSError, EOFError) as error:
        return Login(_explain(broker, error))


async def _ask_for_id(probe: Probe, broker: Broker) -> tuple[bool, ConnAckPacket | None]:
    """Let the broker choose the id. True where it made a new one; otherwise this may be the daemon's session."""
    try:
        connack = await enter_as_daemon(probe, broker, "")
    except RefusedError as refused:
        if refused.code == _BAD_CLIENT_ID:
            return False, None
        raise
    assigned = connack.assigned_client_id
    if assigned and assigned != broker.username and not connack.session_present:
        await probe.leave(forget=True)
        return True, connack
    return False, connack


async def _look_around(probe: Probe, broker: Broker, connack: ConnAckPacket) -> list[Finding]:
    found = [
        ok("broker.mqtt5", "offered"),
        ok("broker.login", f"{_who(broker)} is let in"),
        _judge_session(broker, connack),
    ]
    if broker.share_group and not connack.session_present:
        # A member that joins and leaves would take readings with it.
        found.append(skipped("broker.subscribe", "a new member of a share group would be given readings"))
    else:
        found += _judge_subscription(broker, await probe.subscribe(_filters(broker)))
    await probe.leave(forget=not connack.session_present)
    return found


def _judge_session(broker: Broker, connack: ConnAckPacket) -> Finding:
    name = "broker.session"
    expiry_s = connack.session_expiry_interval
    if expiry_s is not None and expiry_s < SESSION_EXPIRY_S_MIN:
        remedy = "let the broker keep sessions for at least some days (Mosquitto: persistent_client_expiration 14d)"
        return warning(name, f"the broker keeps the session of an absent daemon for {expiry_s} s only", remedy)
    if not connack.session_present:
        remedy = "start the daemon once: systemctl start fleetwatt-daemon; from then on the broker keeps messages"
        return warning(name, "the broker has none for the daemon: what devices publish now is kept for nobody", remedy)
    return ok(name, f"the broker keeps one for {broker.client_id} (or its account), and it was left as it was")


def _judge_subscription(broker: Broker, codes: list[int]) -> list[Finding]:
    name = "broker.subscribe"
    refused = [
        f"{topic} (reason code {code}, 0x{code:x})"
        for topic, code in zip(broker.topic_filters, codes, strict=False)
        if code >= FIRST_ERROR_CODE
    ]
    if refused:
        remedy = f"let {_who(broker)} read meters/# and vehicles/#: mosquitto/acl has the lines"
        return [failure(name, f"the broker refuses {' and '.join(refused)}", remedy)]
    if 0 in codes:
        remedy = "let the broker grant QoS 1; with QoS 0 messages are lost whenever the daemon is away"
        return [warning(name, "the broker grants only QoS 0", remedy)]
    return [ok(name, f"{' and '.join(broker.topic_filters)} granted with QoS 1")]


def _filters(broker: Broker) -> list[TopicFilter]:
    """The daemon's own subscription to the letter, so that it does not change."""
    return [
        TopicFilter(
            pattern,
            max_qos=QoS.AT_LEAST_ONCE,
            retain_as_published=False,
            retain_handling=RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS,
        )
        for pattern in broker.topic_filters
    ]


def _explain(broker: Broker, error: Exception) -> list[Finding]:
    because = "the broker does not let the daemon in"
    rest = [skipped("broker.session", because), skipped("broker.subscribe", because)]
    if isinstance(error, NotMqtt5Error):
        remedy = "use a broker that offers MQTT 5 (Mosquitto 1.6 or newer), or correct the port in MQTT_URL"
        return [failure("broker.mqtt5", str(error), remedy), skipped("broker.login", "of that"), *rest]
    if isinstance(error, RefusedError):
        if error.code in _BAD_PASSWORD:
            remedy = (
                f"put the right password into MQTT_URL, or set it anew: mosquitto_passwd /etc/mosquitto/passwords "
                f"{broker.username or 'fleetwatt'}; systemctl reload mosquitto"
            )
        else:
            remedy = "see what the broker's log says: journalctl -u mosquitto -n 20"
        text = f"the broker refuses {_who(broker)}: {error}"
        return [ok("broker.mqtt5", "offered"), failure("broker.login", text, remedy), *rest]
    text = str(error) or type(error).__name__
    remedy = "see what the broker's log says: journalctl -u mosquitto -n 20"
    if isinstance(error, ClosedError) and broker.tls is None:
        remedy = "if that port is one for TLS, write mqtts:// in MQTT_URL; otherwise journalctl -u mosquitto -n 20"
    if "TAKEN_OVER" in text:
        text = "somebody else entered the same session meanwhile: a daemon that runs elsewhere, or with another port"
        remedy = "run the check where the daemon runs, with its METRICS_HOST and METRICS_PORT"
        return [skipped("broker.mqtt5", "of the next line"), warning("broker.login", text, remedy), *rest]
    return [skipped("broker.mqtt5", "of the next line"), failure("broker.login", text, remedy), *rest]


def _who(broker: Broker) -> str:
    return f"the account {broker.username}" if broker.username else "a client without an account"
