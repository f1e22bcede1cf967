"""uvicorn, bounded: how large a head may be, how long it may take, how many clients there may be at once.

httptools itself bounds none of these. What it refuses is answered with a problem document like everything else.
"""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from types import FrameType
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.errors import MEDIA_TYPE, ProblemError, document, new_request_id
from api.settings import ApiSettings
from sql.settings import SettingsError

log = structlog.get_logger("fleetwatt.api")

HEAD_BYTES_MAX = 16 * 1024
HEAD_TIMEOUT_S = 10.0
"""From the connection, or the answer before, to the end of a request's head."""
CONNECTIONS_MAX = 2048
GRACE_S = 5
"""How long requests under way may go on after SIGTERM."""


class _HeadTooLargeError(Exception):
    pass


class BoundedProtocol(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = True
        self._heads = 0
        """That are complete."""
        self._head_bytes = 0
        """Of a head that is not complete, as it came."""
        self._line_bytes = 0
        """Of its lines that are."""
        self._is_too_large = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """A client came."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            log.warning("too many connections, a new one was closed", connections=len(self.connections))
            transport.abort()
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client went."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        was_in_head, heads = self._in_head, self._heads
        super().data_received(data)
        if was_in_head and self._heads == heads and not self.transport.is_closing():
            # httptools keeps an unfinished line to itself, so it is counted here; all of it is of the one head.
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._is_too_large = True
                self.send_400_response("")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        super().on_message_begin()
        self._line_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the target came."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header came."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete: from here on the application's bounds hold."""
        self._in_head = False
        self._heads += 1
        self._head_bytes = 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._in_head = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is complete: the next request may come, but not take for ever."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._wait_for_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no sound request, and close."""
        status = 431 if self._is_too_large else 400
        detail = f"The head of the request is too large; allowed: {HEAD_BYTES_MAX} bytes" if status == 431 else msg
        request_id = new_request_id()
        body = document(ProblemError(status, detail), request_id)
        head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nx-request-id: {request_id}\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
        log.info("request refused", status=status, request_id=request_id)

    def _count(self, size: int) -> None:
        self._line_bytes += size
        if self._line_bytes > HEAD_BYTES_MAX:
            self._is_too_large = True
            raise _HeadTooLargeError  # the parser stops and calls send_400_response

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        # A request that was sent ahead may be under way meanwhile; the end of its answer sets a new deadline.
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn, ending with exit code 0 when it is told to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop in good order on SIGTERM and SIGINT."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.handle_exit(number, frame)


def listen(settings: ApiSettings) -> socket.socket:
    """The socket to serve on; raises SettingsError where it cannot be had."""
    host, port = settings.api_host, settings.api_port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:  # the latter for a name that no look-up can be made of
        raise SettingsError(
            f"API_HOST and API_PORT are {host!r} and {port}, where the sidecar cannot listen ({error}); "
            "allowed: an address of this machine and a free port"
        ) from error


def serve(app: ASGIApp, settings: ApiSettings, listener: socket.socket) -> bool:
    """Serve until SIGTERM or SIGINT; returns whether it came to that."""
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    log.info(
        "started", address=f"http://{settings.api_host}:{settings.api_port}", tokens=bool(settings.api_tokens_file)
    )
    server = Server(config)
    server.run(sockets=[listener])
    log.info("stopped")
    return server.started
