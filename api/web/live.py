"""One look a second for however many viewers: what changed is rendered once and sent to all of them.

Rule: nobody looks while nobody views. A look that takes long makes the next one wait, so that looking never takes more
than a part of the database's time.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

import msgspec
import structlog
from sse_starlette import ServerSentEvent

from api.errors import ProblemError
from api.metrics import Metrics

log = structlog.get_logger("fleetwatt.api.live")

INTERVAL_S = 1.0
SHARE_MAX = 0.25
"""Of the time, that looking may take."""
PAUSE_S_MAX = 10.0
"""Between two looks, however long they take."""
VIEWERS_MAX = 1000
RETRY_MS = 2000
"""After which a browser whose stream broke comes again."""
BUG = "Something went wrong here; the log has it"


class Live:
    """The latest parts of the page, by the id of their element, and who waits for the next ones."""

    def __init__(self, look: Callable[[], Awaitable[Mapping[str, str]]], metrics: Metrics) -> None:
        """`look` returns all parts, rendered."""
        self._look = look
        self._metrics = metrics
        self._parts: dict[str, str] = {}
        self._event: ServerSentEvent | None = None
        """The last one."""
        self._trouble: ServerSentEvent | None = None
        """The last one, if it told of trouble: whoever joins is told as well."""
        self._events = 0
        self._came: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._someone = asyncio.Event()
        self.viewers = 0

    async def run(self) -> None:
        """Look for ever, as long as there are viewers."""
        loop = asyncio.get_running_loop()
        while True:
            await self._someone.wait()
            started_at_s = time.monotonic()
            self._event = await self._next()
            self._events += 1
            came, self._came = self._came, loop.create_future()
            came.set_result(None)
            took_s = time.monotonic() - started_at_s
            await asyncio.sleep(min(PAUSE_S_MAX, max(INTERVAL_S - took_s, took_s * (1 / SHARE_MAX - 1))))

    async def events(self) -> AsyncGenerator[ServerSentEvent, None]:
        """What one viewer is sent: everything that is known, then what changes; all again to whom one was too fast."""
        self._count(+1)
        self._someone.set()
        seen = self._events
        try:
            if self._parts:
                yield _event(self._parts)
            if self._trouble:
                yield self._trouble
            while True:
                if self._events == seen:
                    await asyncio.shield(self._came)
                is_next = self._events == seen + 1
                seen = self._events
                yield self._event if is_next and self._event else _event(self._parts)
        finally:
            self._count(-1)
            if not self.viewers:
                self._someone.clear()
                self._parts, self._trouble = {}, None

    def _count(self, more: int) -> None:
        self.viewers += more
        self._metrics.viewers.set(self.viewers)

    async def _next(self) -> ServerSentEvent:
        self._metrics.looks.inc()
        try:
            parts = dict(await self._look())
        except ProblemError as error:
            log.warning("the live figures cannot be had", error=error.detail)
            return self._troubled(error.detail)
        except Exception as error:  # a bug of ours: the trace for the log, and the next look may go well
            log.error("the live figures cannot be had", exc_info=error)
            return self._troubled(BUG)
        self._trouble = None
        changed = {name: part for name, part in parts.items() if self._parts.get(name) != part}
        # Kept for nobody, they would be old when the next viewer comes.
        self._parts = parts if self.viewers else {}
        return _event(changed)

    def _troubled(self, detail: str) -> ServerSentEvent:
        self._trouble = ServerSentEvent(detail, event="trouble", retry=RETRY_MS)
        return self._trouble


def _event(parts: Mapping[str, str]) -> ServerSentEvent:
    return ServerSentEvent(msgspec.json.encode(parts).decode(), event="parts", retry=RETRY_MS)
