"""Certificates for tests: the shipped script makes the good ones, and what it would not make is signed here."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

SCRIPT = str(Path(__file__).parent.parent / "mosquitto" / "certificates")
YEAR = timedelta(days=365)


class Authority:
    """An authority in a folder, with a server's certificate and key beside it."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self._names = names or ("localhost", "127.0.0.1")
        subprocess.run([SCRIPT, str(folder), *self._names], check=True)
        self.ca, self.server, self.server_key = (folder / name for name in ("ca.crt", "server.crt", "server.key"))

    def client(self, name: str) -> tuple[Path, Path]:
        """The certificate and key of a device or daemon, made when they are first asked for."""
        certificate = self.folder / f"{name}.crt"
        if not certificate.exists():
            subprocess.run([SCRIPT, "--client", name, str(self.folder)], check=True)
        return certificate, self.folder / f"{name}.key"

    def rename_server(self, *names: str) -> None:
        """Give the server a new certificate for other names, as renewing does."""
        self.server.unlink()
        self.server_key.unlink()
        subprocess.run([SCRIPT, str(self.folder), *names], check=True)

    def renew_server(self) -> None:
        """Give the server a new certificate for its own names."""
        self.rename_server(*self._names)

    def expire(self, certificate: Path) -> None:
        """Sign a certificate again, good until yesterday and otherwise the same."""
        old = x509.load_pem_x509_certificate(certificate.read_bytes())
        yesterday = datetime.now(UTC) - timedelta(days=1)
        builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), old.serial_number)
        builder = builder.not_valid_before(yesterday - YEAR).not_valid_after(yesterday)
        for extension in old.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        key = load_pem_private_key((self.folder / "ca.key").read_bytes(), password=None)
        signed = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]  # an elliptic curve's, from the script
        certificate.write_bytes(signed.public_bytes(Encoding.PEM))
