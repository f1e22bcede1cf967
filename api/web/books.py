"""The daemons' books, asked for over HTTP: where every reading is. The sidecar itself receives none."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from api.params import shown

TIMEOUT_S = 1.0
"""For the whole answer."""
ANSWER_BYTES_MAX = 256 * 1024

# By host, those under way: of the process, as the few threads are in which they wait.
_lookups: dict[str, asyncio.Future[Any]] = {}


class _Readings(Struct, rename="camel"):
    received: int
    spooled: int
    in_flight: int
    unaccounted: int


class _Rates(Struct):
    received: float


class _Lag(Struct):
    p99: float


class _Status(Struct, rename="camel"):
    """Of what a daemon tells at `/status`, the parts that are shown."""

    readings: _Readings
    rates_per_s: _Rates
    device_to_commit_s: _Lag | None
    faults: list[str]


class Books(Struct, frozen=True):
    """Those of all daemons, added up."""

    daemons: int
    """How many were asked."""
    away: list[str]
    """Those that did not answer, each with the reason."""
    received: int = 0
    unaccounted: int = 0
    spooled: int = 0
    in_flight: int = 0
    received_per_s: float = 0.0
    device_to_commit_s: float | None = None
    """The 99th percentile of the last minute, of the slowest daemon."""
    faults: list[str] = []

    @property
    def are_known(self) -> bool:
        """Whether any daemon answered."""
        return self.daemons > len(self.away)


async def read_books(urls: Sequence[str]) -> Books:
    """Ask each daemon; one that is away is named and not counted."""
    answers = await asyncio.gather(*map(_ask, urls))
    found = [answer for answer in answers if isinstance(answer, _Status)]
    lags_s = [status.device_to_commit_s.p99 for status in found if status.device_to_commit_s]
    return Books(
        daemons=len(urls),
        away=[answer for answer in answers if isinstance(answer, str)],
        received=sum(status.readings.received for status in found),
        unaccounted=sum(status.readings.unaccounted for status in found),
        spooled=sum(status.readings.spooled for status in found),
        in_flight=sum(status.readings.in_flight for status in found),
        received_per_s=sum(status.rates_per_s.received for status in found),
        device_to_commit_s=max(lags_s, default=None),
        faults=[fault for status in found for fault in status.faults],
    )


async def _ask(url: str) -> _Status | str:
    """What a daemon tells, or why it does not."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return msgspec.json.decode(await _get(url), type=_Status)
    except TimeoutError:
        return f"{url}: no answer within {TIMEOUT_S:g} s"
    except (OSError, EOFError, ValueError) as error:  # what is no HTTP and no JSON of ours is a ValueError
        return f"{url}: {error or type(error).__name__}"


async def _resolve(host: str, port: int) -> str:
    """An address of the host. A look-up cannot be cancelled, so there is never more than one of a name under way."""
    task = _lookups.get(host)
    if task is None:
        task = _lookups[host] = asyncio.ensure_future(
            asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        task.add_done_callback(lambda done: (_lookups.pop(host, None), done.cancelled() or done.exception()))
    found = await asyncio.shield(task)
    return str(found[0][4][0])


async def _get(url: str) -> bytes:
    """The body of `/status`. HTTP/1.0, so that it comes in one piece and ends with the connection."""
    address = urlsplit(url)
    is_tls = address.scheme == "https"
    port = address.port or (443 if is_tls else 80)
    host = address.hostname or ""
    reader, writer = await asyncio.open_connection(
        await _resolve(host, port), port, ssl=is_tls or None, server_hostname=host if is_tls else None
    )
    try:
        writer.write(f"GET /status HTTP/1.0\r\nHost: {address.netloc}\r\nAccept: application/json\r\n\r\n".encode())
        answer = b""
        while piece := await reader.read(ANSWER_BYTES_MAX):
            answer += piece
            if len(answer) > ANSWER_BYTES_MAX:
                raise ValueError(f"its answer is larger than {ANSWER_BYTES_MAX} bytes")
    finally:
        writer.transport.abort()
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.split(b" ", 2)[1:2] != [b"200"]:
        status_line = head.splitlines()[0].decode("latin-1") if head else "nothing"
        raise ValueError(f"it answers {shown(status_line)}")
    return body
