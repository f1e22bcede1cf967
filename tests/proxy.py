"""A network between a client and the database that can be told to behave badly."""

import asyncio
import contextlib
from types import TracebackType
from urllib.parse import urlsplit


class Proxy:
    """Passes bytes on, from a port of its own to the server of a URL, for the time of the block."""

    def __init__(self, database_url: str) -> None:
        self._address = urlsplit(database_url)
        self._connections: set[asyncio.Task[None]] = set()
        self.lose_answer_to: bytes | None = None
        """The next request with these bytes reaches the server; its answer is lost, and the connection with it."""
        self.answers_lost = 0
        self.hide_hang_ups = False
        """A connection that the server closes stays open for the client."""
        self.hang_ups_hidden = 0

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """The database's URL, by way of this proxy."""
        port = self._server.sockets[0].getsockname()[1]
        account = self._address.netloc.rpartition("@")[0]
        return f"postgresql://{account}@127.0.0.1:{port}{self._address.path}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer), name="proxied connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: writer.close())  # also where it was cancelled before its first step

    async def _connect(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(self._address.hostname, self._address.port)
        losing = asyncio.Event()
        up = asyncio.create_task(self._pass_up(client, to_server, losing))
        down = asyncio.create_task(self._pass_down(server, to_client, losing))
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.wait([up, down])
            for writer in (to_server, to_client):
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _pass_up(
        self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await client.read(1 << 16):
                if self.lose_answer_to is not None and self.lose_answer_to in data:
                    self.lose_answer_to = None
                    losing.set()
                to_server.write(data)
                await to_server.drain()

    async def _pass_down(
        self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await server.read(1 << 16):
                if losing.is_set():
                    self.answers_lost += 1
                    return
                to_client.write(data)
                await to_client.drain()
        if self.hide_hang_ups:
            self.hang_ups_hidden += 1
            await asyncio.Event().wait()
