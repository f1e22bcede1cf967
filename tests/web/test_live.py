"""The live stream without a browser: one look for many viewers, and none for nobody."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
import pytest
from sse_starlette import ServerSentEvent
from starlette.applications import Starlette
from starlette.types import Message

from api.access import REQUESTS_MAX
from api.app import build_app
from api.errors import unavailable
from api.metrics import Metrics
from api.web import live as module
from api.web.live import BUG, Live
from dev.house import eventually
from tests.api.conftest import settings

VIEWERS = 50


class Looks:
    """Looks whose findings the test gives, one by one."""

    def __init__(self) -> None:
        self.begun = 0
        self._findings: asyncio.Queue[Mapping[str, str] | Exception] = asyncio.Queue()

    async def __call__(self) -> Mapping[str, str]:
        """One look."""
        self.begun += 1
        found = await self._findings.get()
        if isinstance(found, Exception):
            raise found
        return found

    def find(self, found: Mapping[str, str] | Exception) -> None:
        """What the next look comes to."""
        self._findings.put_nowait(found)


class Viewer:
    """One who looks, and asks for the next event when the test says so."""

    def __init__(self, live: Live) -> None:
        self._events = live.events()
        self._next: asyncio.Task[ServerSentEvent] | None = None

    async def ask(self) -> None:
        """Wait for the next event, from now on."""
        self._next = asyncio.create_task(self._take())
        await turns()

    async def got(self) -> tuple[str | None, Any]:
        """The kind of the event that came, and what it says; asks where that was not done before."""
        if self._next is None:
            await self.ask()
        assert self._next
        event = await self._next
        self._next = None
        return event.event, msgspec.json.decode(str(event.data)) if event.event == "parts" else event.data

    async def leave(self) -> None:
        """As when the connection ends."""
        if self._next:
            self._next.cancel()
            await asyncio.wait([self._next])
        await self._events.aclose()

    async def _take(self) -> ServerSentEvent:
        return await anext(self._events)


async def turns() -> None:
    """Let everything go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def looks() -> Looks:
    """Looks without findings so far."""
    return Looks()


@pytest.fixture
async def live(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    """It looks again at once."""
    monkeypatch.setattr(module, "INTERVAL_S", 0.0)
    monkeypatch.setattr(module, "SHARE_MAX", 1.0)
    live = Live(looks, Metrics())
    running = asyncio.create_task(live.run())
    await turns()
    yield live
    running.cancel()
    await asyncio.wait([running])


async def test_many_viewers_are_served_by_one_look(live: Live, looks: Looks) -> None:
    viewers = [Viewer(live) for _ in range(VIEWERS)]
    for viewer in viewers:
        await viewer.ask()
    assert (live.viewers, looks.begun) == (VIEWERS, 1)
    for number in range(3):
        looks.find({"lost": f"{number} kWh", "flow": "steady"})
        events = [await viewer.got() for viewer in viewers]
        changed = {"lost": f"{number} kWh"} | ({"flow": "steady"} if number == 0 else {})
        assert events == [("parts", changed)] * VIEWERS
        await turns()
        assert looks.begun == number + 2


async def test_nobody_looks_while_nobody_views(live: Live, looks: Looks) -> None:
    assert looks.begun == 0
    viewer = Viewer(live)
    await viewer.ask()
    looks.find({"lost": "1"})
    await viewer.got()
    await viewer.leave()
    for number in range(5):
        looks.find({"lost": f"{number}"})
        await turns()
    assert (live.viewers, looks.begun) == (0, 2)  # the second had begun before the viewer left


async def test_who_comes_while_others_view_gets_everything_at_once(live: Live, looks: Looks) -> None:
    first, second = Viewer(live), Viewer(live)
    await first.ask()
    looks.find({"lost": "1", "flow": "2"})
    await first.got()
    assert await second.got() == ("parts", {"lost": "1", "flow": "2"})
    looks.find({"lost": "1", "flow": "3"})
    assert [await viewer.got() for viewer in (first, second)] == [("parts", {"flow": "3"})] * 2


async def test_who_comes_after_a_while_gets_nothing_old(live: Live, looks: Looks) -> None:
    early = Viewer(live)
    await early.ask()
    await early.leave()
    looks.find({"lost": "old"})  # the look had begun
    await turns()
    late = Viewer(live)
    await late.ask()
    looks.find({"lost": "new"})
    assert await late.got() == ("parts", {"lost": "new"})


async def test_a_slow_viewer_gets_everything_instead_of_what_it_missed(live: Live, looks: Looks) -> None:
    slow, quick = Viewer(live), Viewer(live)
    for viewer in (slow, quick):
        await viewer.ask()
    looks.find({"lost": "1", "flow": "1", "worst": "1"})
    for viewer in (slow, quick):
        await viewer.got()
    for changes in ({"lost": "2"}, {"flow": "2"}):
        await quick.ask()
        looks.find({"lost": "2", "flow": "1", "worst": "1", **changes})
        assert await quick.got() == ("parts", changes)
    assert await slow.got() == ("parts", {"lost": "2", "flow": "2", "worst": "1"})
    await slow.ask()
    looks.find({"lost": "2", "flow": "2", "worst": "3"})
    assert await slow.got() == ("parts", {"worst": "3"})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (unavailable("The database does not answer"), "The database does not answer"),
        (RuntimeError("password=secret"), BUG),
        (TimeoutError(), BUG),
    ],
    ids=["a problem", "a bug", "an error without words"],
)
async def test_a_look_that_fails_is_told_and_the_next_one_goes_on(
    live: Live, looks: Looks, error: Exception, said: str
) -> None:
    viewer = Viewer(live)
    await viewer.ask()
    looks.find({"lost": "1"})
    await viewer.got()
    await viewer.ask()
    looks.find(error)
    assert await viewer.got() == ("trouble", said)
    await viewer.ask()
    looks.find({"lost": "1"})
    assert await viewer.got() == ("parts", {})  # nothing has changed, and the trouble is over


async def test_a_viewer_who_leaves_is_forgotten(live: Live, looks: Looks) -> None:
    viewers = [Viewer(live) for _ in range(VIEWERS)]
    for viewer in viewers:
        await viewer.ask()
    for left, viewer in enumerate(viewers, start=1):
        await viewer.leave()
        assert live.viewers == VIEWERS - left


async def test_viewers_do_not_count_among_the_requests_that_are_under_way(database_url: str) -> None:
    app = build_app(settings(database_url))
    async with app.router.lifespan_context(app):
        viewers = [asyncio.create_task(ask(app, "/live")) for _ in range(REQUESTS_MAX + 1)]
        await until(lambda: app.state.site.live.viewers == len(viewers))
        assert await ask(app, "/v1/meters") == 200
        for viewer in viewers:
            viewer.cancel()
        await asyncio.wait(viewers)
        await until(lambda: app.state.site.live.viewers == 0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""

    async def holds() -> bool:
        return condition()

    await eventually(holds)


async def ask(app: Starlette, path: str) -> int:
    """The status of the answer to a request whose client stays."""
    statuses: list[int] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }

    never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    async def receive() -> Message:
        return await never

    async def send(message: Message) -> None:
        statuses.extend([message["status"]] if message["type"] == "http.response.start" else [])

    await app(scope, receive, send)
    return statuses[0]
