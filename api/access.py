"""Around every request: its id, its line in the log, its metrics, and the bounds that hold for all of them."""

import asyncio
import re
import time
from collections.abc import Callable

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ProblemError, new_request_id, respond, respond_to_bug, unavailable
from api.metrics import Metrics
from api.params import shown

log = structlog.get_logger("fleetwatt.api.access")

REQUESTS_MAX = 512
"""Requests under way at once; more are told to come again."""
SEND_TIMEOUT_S = 30.0
"""How long a client may take to read a piece of its answer."""
QUIET_ROUTES = frozenset({"/livez", "/readyz", "/health", "/metrics", "/devices"})
"""Asked by machines and scripts every few seconds: logged at the level debug."""
LIVENESS = frozenset({"/livez", "/api/livez"})
"""Answered also then: who is busy is alive."""
STREAMS = frozenset({"/live"})
"""Open for as long as somebody looks, and bounded by themselves: these do not keep others out."""
HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store", "referrer-policy": "no-referrer"}
"""Sent with every answer that does not say otherwise."""

_THIS_MACHINE = re.compile(rb"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d*)?", re.IGNORECASE)
ANOTHER_HOST = (
    "Without tokens only this machine may ask, and only under the names localhost, 127.0.0.1 and [::1]; "
    "set API_TOKENS_FILE to be asked under another name"
)


STOPPING = "The sidecar is being stopped, send the request again"


class SlowReaderError(Exception):
    """The client does not read its answer."""


class Access:
    """The outermost layer."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        clock: Callable[[], float] = time.perf_counter,
        *,
        only_this_machine: bool = False,
    ) -> None:
        """`only_this_machine` where nobody needs a token: else a web page whose name leads here could ask."""
        self._app = app
        self._metrics = metrics
        self._only_this_machine = only_this_machine
        self._clock = clock
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = _Seen(send)
        scope.setdefault("state", {})["request_id"] = seen.request_id
        started_at_s = self._clock()
        weight = int(scope["path"] not in STREAMS)
        self._count(weight)
        try:
            await self._answer(scope, receive, seen)
        finally:
            self._count(-weight)
            self._tell(scope, seen, self._clock() - started_at_s)

    def _count(self, more: int) -> None:
        self._under_way += more
        self._metrics.in_flight.set(self._under_way)

    async def _answer(self, scope: Scope, receive: Receive, seen: "_Seen") -> None:
        try:
            if self._under_way > REQUESTS_MAX and scope["path"] not in LIVENESS:
                problem = unavailable("Too many requests are under way, send the request again")
                await respond(problem, seen.request_id)(scope, receive, seen.send)
            elif self._only_this_machine and not _names_this_machine(scope):
                await respond(ProblemError(421, ANOTHER_HOST), seen.request_id)(scope, receive, seen.send)
            else:
                await self._app(scope, receive, seen.send)
        except SlowReaderError:
            log.warning("client does not read its answer, connection closed", request_id=seen.request_id)
        except asyncio.CancelledError:  # only the server cancels, what is still under way when its time to stop is over
            if not seen.status:
                await respond(unavailable(STOPPING), seen.request_id)(scope, receive, seen.send)
        except Exception as error:
            bug = respond_to_bug(error, seen.request_id)
            if not seen.status:
                await bug(scope, receive, seen.send)
            # else the answer stays unfinished, which makes the server close the connection: the client can tell

    def _tell(self, scope: Scope, seen: "_Seen", seconds: float) -> None:
        route = scope["state"].get("route", "unknown")
        if route not in STREAMS:  # which last as long as somebody looks
            self._metrics.answered(scope["method"], route, seen.status, seconds)
        say = log.debug if route in QUIET_ROUTES else log.info
        say(
            "request",
            method=scope["method"],
            path=shown(scope["path"]),
            status=seen.status,
            duration_ms=round(seconds * 1000, 1),
            bytes=seen.bytes,
            client=scope["client"][0] if scope.get("client") else None,
            token=scope["state"].get("token"),
            request_id=seen.request_id,
        )


def _names_this_machine(scope: Scope) -> bool:
    """Whether the header Host does; browsers always send it."""
    return all(_THIS_MACHINE.fullmatch(value) for name, value in scope["headers"] if name == b"host")


class _Seen:
    """Passes an answer on and remembers what it was."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.request_id = new_request_id()
        self.status = 0
        self.bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers["x-request-id"] = self.request_id
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        else:
            self.bytes += len(message.get("body", b""))
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._send(message)
        except TimeoutError:
            raise SlowReaderError from None
