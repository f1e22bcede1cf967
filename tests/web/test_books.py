"""The daemons' books as the pages ask for them: from daemons that are well, away, slow, or no daemons at all."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from psutil import Process

from api.web import books
from api.web.books import read_books
from tests.certificates import Authority

STATUS = {
    "readings": {"received": 10, "spooled": 1, "inFlight": 2, "unaccounted": 0},
    "ratesPerS": {"received": 2.5},
    "deviceToCommitS": {"p50": 0.1, "p99": 0.25, "max": 1.0},
    "faults": ["the broker is away"],
}
Speak = Callable[[asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that answers is not away because the machine is slow."""
    monkeypatch.setattr(books, "TIMEOUT_S", 20.0)


@asynccontextmanager
async def daemon(speak: Speak, authority: Authority | None = None) -> AsyncIterator[str]:
    """Something that listens, and answers a request so; behind TLS with the certificate of an authority."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await speak(writer)
        except (ConnectionError, EOFError):
            pass  # it was left
        finally:
            writer.close()

    tls = None
    if authority:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(authority.server, authority.server_key)
    server = await asyncio.start_server(meet, "127.0.0.1", ssl=tls)
    async with server:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def saying(answer: bytes) -> Speak:
    """Says this."""

    async def speak(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return speak


well = saying(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + msgspec.json.encode(STATUS))


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def never_done(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n{")
    await writer.drain()
    await asyncio.Event().wait()


async def test_the_books_of_all_daemons_are_added_up() -> None:
    async with daemon(well) as first, daemon(well) as second:
        found = await read_books([first, second])
    assert (found.daemons, found.away, found.are_known) == (2, [], True)
    assert (found.received, found.spooled, found.in_flight, found.received_per_s) == (20, 2, 4, 5.0)
    assert found.device_to_commit_s == 0.25
    assert found.faults == ["the broker is away"] * 2


@pytest.mark.parametrize(
    ("speak", "why"),
    [
        (saying(b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}"), "it answers HTTP/1.1 503 Service Unavailable"),
        (saying(b""), "it answers nothing"),
        (saying(b"HTTP/1.1 200 OK\r\n\r\n<html>"), "malformed"),
        (saying(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n"), "302 Found"),
        (endless, "larger than"),
    ],
    ids=["unwell", "nothing", "no books", "elsewhere", "endless"],
)
async def test_what_is_no_daemon_is_named_with_the_reason(speak: Speak, why: str) -> None:
    async with daemon(speak) as url:
        found = await read_books([url])
    assert not found.are_known
    assert found.away[0].startswith(f"{url}: ")
    assert why in found.away[0]


async def test_a_daemon_that_does_not_finish_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "TIMEOUT_S", 0.05)
    async with daemon(never_done) as slow:
        found = await read_books([slow])
    assert found.away == [f"{slow}: no answer within 0.05 s"]


async def hung(writer: asyncio.StreamWriter) -> None:
    """Reads nothing any more, not even that the other side has left."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # which that of a connection has
    try:
        await asyncio.Event().wait()
    finally:
        writer.transport.abort()


async def test_a_daemon_behind_tls_is_asked_and_one_that_hangs_is_left_at_once(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    async with daemon(well, authority) as url:
        assert (await read_books([url])).away == []
    monkeypatch.setattr(books, "TIMEOUT_S", 0.5)
    async with daemon(hung, authority) as url:
        found = await read_books([url])
        assert found.away == [f"{url}: no answer within 0.5 s"]
        port = int(url.rpartition(":")[2])
        assert [each for each in Process().net_connections("tcp") if each.raddr and each.raddr.port == port] == []


async def test_a_name_that_is_not_resolved_is_looked_up_once_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "TIMEOUT_S", 0.01)
    asked: list[str] = []
    answer = asyncio.Event()

    async def look_up(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        await answer.wait()
        raise OSError("nobody knows it")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    for _ in range(5):
        found = await read_books(["http://daemon.example:9108"])
        assert found.away == ["http://daemon.example:9108: no answer within 0.01 s"]
    assert asked == ["daemon.example"]
    answer.set()
