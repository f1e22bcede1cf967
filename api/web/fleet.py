"""The first page: how much energy is lost and where, and whether readings flow."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Literal

import anyio
from msgspec import Meta, Struct
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import RedirectResponse, Response

from api.devices import KINDS
from api.errors import ProblemError, unavailable
from api.params import DeviceId, segment
from api.web.live import VIEWERS_MAX
from api.web.overview import Overview, Watch
from api.web.pages import Page, Visit, text
from sql import devices
from sql.overview import Silent, list_silent

PARTS = ("lost", "worst", "flow")
"""The parts of the page that move, each a template of its own, named as its element."""
STREAM_PING_S = 15
FAREWELL_S = 2.0
"""For which streams may go on when the sidecar stops: there is an event a second. Less than `api.server.GRACE_S`."""


class Chosen(Struct, frozen=True):
    """Which devices the table shows."""

    kind: Annotated[Literal["vehicle", "meter"], Meta(description="vehicle or meter")] = "vehicle"
    begins: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{0,64}\Z", description="up to 64 of A-Z a-z 0-9 . _ : -")] = (
        ""
    )


class Wanted(Struct, frozen=True):
    """A device to look for."""

    id: DeviceId


async def show(visit: Visit) -> Response:
    """The whole page."""
    chosen = visit.query(Chosen)
    overview = await visit.site.watch.overview()
    return visit.render("fleet.html", overview=overview, devices=await _devices(visit, chosen), chosen=chosen)


async def show_devices(visit: Visit) -> Response:
    """The table of devices alone, for the script that refreshes it."""
    chosen = visit.query(Chosen)
    return visit.render("parts/devices.html", devices=await _devices(visit, chosen), chosen=chosen)


async def stream(visit: Visit) -> Response:
    """What moves, as server-sent events."""
    live = visit.site.live
    if live.viewers >= VIEWERS_MAX:
        raise unavailable("Too many viewers are looking; the figures on the page stay as they are")
    if visit.request.method == "HEAD":  # nobody follows what has no body
        return Response(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    leaving = anyio.Event()  # set when the sidecar stops; then there is a moment to end in good order
    return EventSourceResponse(
        follow(visit, leaving),
        ping=STREAM_PING_S,
        headers={"Cache-Control": "no-store"},
        shutdown_event=leaving,
        shutdown_grace_period=FAREWELL_S,
    )


async def follow(visit: Visit, leaving: anyio.Event) -> AsyncGenerator[ServerSentEvent, None]:
    """What the viewer is sent, until the session is over, its token is revoked, or the sidecar stops."""
    async with aclosing(visit.site.live.events()) as events:  # or the viewer would be counted until it is collected
        async for event in events:
            if leaving.is_set() or visit.site.visitors.of(visit.request) is None:
                break
            yield event


async def find(visit: Visit) -> Response:
    """To the page of the device with this id, or to those whose ids begin so."""
    wanted = visit.query(Wanted).id
    async with visit.sidecar.database.connection() as connection:
        for kind in KINDS.values():
            if await devices.get_status(connection, kind, wanted):
                return RedirectResponse(f"/{kind.name}s/{segment(wanted)}", 303)
        for kind in reversed(KINDS.values()):
            if await list_silent(connection, kind, wanted, 1):
                return RedirectResponse(f"/?kind={kind.name}&begins={wanted}#devices", 303)
    raise ProblemError(404, f"No vehicle and no meter has an id that begins with {wanted}")


async def render_parts(watch: Watch) -> Mapping[str, str]:
    """What moves, as it is now."""
    overview = await watch.overview()
    return {part: _part(part, overview) for part in PARTS}


def _part(part: str, overview: Overview) -> str:
    return text(f"parts/{part}.html", overview=overview)


async def _devices(visit: Visit, chosen: Chosen) -> list[Silent]:
    return await visit.site.watch.silent(KINDS[chosen.kind], chosen.begins)


PAGES = (
    Page(path="/", handler=show),
    Page(path="/devices", handler=show_devices, is_for_scripts=True),
    Page(path="/live", handler=stream, is_for_scripts=True),
    Page(path="/find", handler=find),
)
