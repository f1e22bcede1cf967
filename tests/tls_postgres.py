"""PostgreSQL behind TLS, in two ways that are the same to a client.

The private PostgreSQL of the tests is built without TLS. `TlsFront` speaks it in its place and passes on what is
inside, as a connection pooler does. Where the system has a PostgreSQL of its own with TLS, the tests run with that too.
"""

import asyncio
import contextlib
import shutil
import ssl
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dev import postgres
from dev.postgres import PrivatePostgres
from dev.processes import is_root
from tests.certificates import Authority

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


class TlsFront:
    """A TLS server before a plain PostgreSQL; asks for a client's certificate where it is told to."""

    def __init__(self, database_url: str, authority: Authority, *, require_certificate: bool = False) -> None:
        self._url = urlsplit(database_url)
        self._authority = authority
        self._require_certificate = require_certificate
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "TlsFront":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = self._url._replace(netloc=f"{self._url.netloc.rpartition('@')[0]}@localhost:{port}").geturl()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _context(self) -> ssl.SSLContext:
        """Read anew for each connection, so that a test can renew the certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._authority.server, self._authority.server_key)
        if self._require_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._authority.ca)
        return context

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(OSError, EOFError):
                await self._relay(reader, writer)
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(len(_SSL_REQUEST)) != _SSL_REQUEST:
            return
        writer.write(b"S")
        await writer.start_tls(self._context())
        server_reader, server_writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        try:
            await asyncio.wait(
                [
                    asyncio.create_task(_copy(reader, server_writer)),
                    asyncio.create_task(_copy(server_reader, writer)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            server_writer.transport.abort()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()


def has_system_postgres() -> bool:
    """Whether the system has a PostgreSQL; Debian's is built with TLS."""
    return _system_binaries() is not None


def _system_binaries() -> Path | None:
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@contextlib.contextmanager
def system_postgres(authority: Authority, role: str) -> Iterator[PrivatePostgres]:
    """The system's PostgreSQL on a folder of its own, where `role` gets in by its certificate alone."""
    with tempfile.TemporaryDirectory(prefix="fleetwatt-") as name, pytest.MonkeyPatch.context() as patch:
        binaries = _system_binaries()
        assert binaries is not None
        patch.setattr(postgres, "BINARIES", binaries)
        folder = Path(name)
        rules = folder / "pg_hba.conf"
        rules.write_text(f"hostssl all {role} all cert\nhost all postgres all scram-sha-256\n")
        files = [shutil.copy(path, folder) for path in (authority.ca, authority.server, authority.server_key)]
        for path in (rules, *files):
            if is_root():
                shutil.chown(path, "nobody")
        settings = dict(zip(("ssl_ca_file", "ssl_cert_file", "ssl_key_file"), map(str, files), strict=True))
        server = PrivatePostgres(folder, {"ssl": "on", "hba_file": str(rules), "shared_buffers": "32MB", **settings})
        server.start()
        try:
            yield server
        finally:
            server.process.stop()
