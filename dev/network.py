"""A network between a client and a server that can be told to behave badly: a TCP proxy with the faults of real ones.

| fault | what the two ends see |
| --- | --- |
| `down` | connections are reset, new ones refused, until `up` |
| `black_hole` | nothing: bytes and hang-ups are swallowed, new connections are accepted and silent |
| `latency_s`, `jitter_s` | each window of bytes comes that much later, and up to that much more |
| `bytes_per_s` | a line that carries no more than this in one direction |
| `reset` | every connection ends with an RST, once |
| `cut_after_bytes` | the same, after a number of bytes between these two, in the middle of whatever it is |
| `lose_answer_to` | the next request with these bytes reaches the server; its answer and the connection are lost |
| `swallow_from` | the connection of the next request with these bytes is in the black hole from that request on |
| `hide_hang_ups` | a connection that the server closes stays open for the client |

A connection that was in the black hole stays dead when the hole is gone, for both ends, as behind a firewall that
forgot it: bytes that are lost cannot be made good, so it could only go on with a hole in the middle.

The network lives in a thread of its own, so that a busy client in the same process does not slow it. Its attributes are
read at every window of bytes; they may be set, and its methods be called, from any other thread.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from types import TracebackType
from urllib.parse import urlsplit

WINDOW_BYTES = 1 << 16
PIECES_PER_S = 20
"""On a slow line: how finely bytes are spread over a second."""
_HOST = "127.0.0.1"
_NO_LINGER = struct.pack("ii", 1, 0)


class Network:
    """Passes bytes on, from a port of its own to the server of a URL, for the time of the block."""

    def __init__(self, url: str, seed: int = 1) -> None:
        """`url` is one of a broker or a database; `seed` decides on jitter and on where connections are cut."""
        self._address = urlsplit(url)
        self._random = random.Random(seed)  # noqa: S311 - keeps no secret
        self._port = 0
        self._connections: set[_Connection] = set()
        self._black_hole = False
        self._cut_after_bytes: tuple[int, int] | None = None
        self.latency_s = 0.0
        self.jitter_s = 0.0
        self.bytes_per_s: float | None = None
        self.lose_answer_to: bytes | None = None
        self.answers_lost = 0
        self.swallow_from: bytes | None = None
        self.hide_hang_ups = False
        self.hang_ups_hidden = 0

    def __enter__(self) -> "Network":
        started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="network", daemon=True)
        self._thread.start()
        started.result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        """The server's URL, by way of this network."""
        account, at, _ = self._address.netloc.rpartition("@")
        return self._address._replace(netloc=f"{account}{at}{_HOST}:{self._port}").geturl()

    def down(self) -> None:
        """Reset every connection and refuse new ones."""
        self._call(self._down())

    def up(self) -> None:
        """Take connections again, after `down`."""
        self._call(self._listen())

    def reset(self) -> None:
        """End every connection with an RST."""
        self._call(self._reset())

    @property
    def black_hole(self) -> bool:
        """Whether everything is swallowed."""
        return self._black_hole

    @black_hole.setter
    def black_hole(self, on: bool) -> None:
        self._black_hole = on
        for connection in list(self._connections):
            connection.dead |= on

    @property
    def cut_after_bytes(self) -> tuple[int, int] | None:
        """Between which two numbers of bytes, counted from here on, connections are cut."""
        return self._cut_after_bytes

    @cut_after_bytes.setter
    def cut_after_bytes(self, bounds: tuple[int, int] | None) -> None:
        self._cut_after_bytes = bounds
        for connection in list(self._connections):
            connection.bytes_left = self.draw_cut()

    def draw_cut(self) -> int | None:
        """After how many bytes from now a connection is cut, if at all."""
        return self._random.randint(*self._cut_after_bytes) if self._cut_after_bytes else None

    def draw_delay_s(self) -> float:
        """By how much the next window of bytes is late."""
        return self.latency_s + self.jitter_s * self._random.random()

    # In the network's own thread.

    def _call(self, work: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self, started: "Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            await self._listen()
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(None)
        await self._stopping.wait()
        await self._down()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, _HOST, self._port, limit=WINDOW_BYTES)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        self._server.close()
        await self._reset()

    async def _reset(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.reset()
        if connections:
            await asyncio.wait([connection.task for connection in connections])

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, self._address.hostname, self._address.port, reader, writer)
        self._connections.add(connection)
        connection.task.add_done_callback(lambda _: self._connections.discard(connection))


class _Connection:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(
        self,
        network: Network,
        host: str | None,
        port: int | None,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
    ) -> None:
        self._network = network
        self._address = (host, port)
        self._client = client
        self._writers = [to_client]
        self._losing = False
        self.dead = network.black_hole
        self.bytes_left = network.draw_cut()
        self.task = asyncio.create_task(self._run(), name="connection through the network")
        self.task.add_done_callback(lambda _: self._close())  # also where it was cancelled before its first step

    def reset(self) -> None:
        """End it with an RST at both ends."""
        for writer in self._writers:
            with contextlib.suppress(OSError):  # the other end was faster
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            writer.transport.abort()
        self.task.cancel()

    async def _run(self) -> None:
        if self.dead:
            await _for_ever()
        try:
            server, to_server = await asyncio.open_connection(*self._address, limit=WINDOW_BYTES)
        except OSError:
            return
        self._writers.append(to_server)
        ways = [
            asyncio.create_task(self._carry(self._client, to_server, up=True)),
            asyncio.create_task(self._carry(server, self._writers[0], up=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)

    def _close(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, up: bool) -> None:
        """One direction, until its source hangs up and that is passed on."""
        with contextlib.suppress(OSError):
            while data := await source.read(WINDOW_BYTES):
                await asyncio.sleep(self._network.draw_delay_s())
                if up:
                    self._look_at(data)
                elif self._losing:
                    self._network.answers_lost += 1
                    return
                for piece in self._pieces(data):
                    await self._pass_on(piece, target)
        if self._network.hide_hang_ups and not up:
            self._network.hang_ups_hidden += 1
            await _for_ever()
        if self.dead:
            await _for_ever()

    def _look_at(self, request: bytes) -> None:
        """See whether this is the request that was waited for."""
        network = self._network
        if network.lose_answer_to is not None and network.lose_answer_to in request:
            network.lose_answer_to = None
            self._losing = True
        if network.swallow_from is not None and network.swallow_from in request:
            network.swallow_from = None
            self.dead = True

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(data):
            rate = self._network.bytes_per_s
            size = max(1, int(rate / PIECES_PER_S)) if rate else len(data)
            yield data[at : at + size]
            at += size

    async def _pass_on(self, piece: bytes, target: asyncio.StreamWriter) -> None:
        if rate := self._network.bytes_per_s:
            await asyncio.sleep(len(piece) / rate)
        if self.dead:
            return
        if self.bytes_left is not None:
            piece = piece[: self.bytes_left]
            self.bytes_left -= len(piece)
        target.write(piece)
        await target.drain()
        if self.bytes_left == 0:
            self.reset()


async def _for_ever() -> None:
    await asyncio.Event().wait()
