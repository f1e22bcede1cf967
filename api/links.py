"""Which vehicle charges at which meter, over time."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, TypeVar

from msgspec import Meta, Struct
from msgspec.structs import replace
from starlette.responses import Response

from api.auth import Role
from api.contract import JSON, Answer, Call, Operation, Page, Sidecar, answer
from api.errors import ProblemError, invalid
from api.params import LIMIT_DEFAULT, Beginning, DeviceId, Instant, Limit, MeterId, NoQuery, segment
from sql import links
from sql.links import Link, LinkOverlapError, LinkRangeError, Paired
from sql.pool import Connection

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

LinkCursor = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{1,17}~[A-Za-z0-9._:-]{1,64}\Z",
        description="`next` of the page before, unchanged",
        examples=["1773500400000000~vehicle-0001"],
    ),
]


Open = Annotated[Literal["true", "false"], Meta(description="true or false; true: only open links", examples=["true"])]


class Pairing(Struct, frozen=True, rename="camel"):
    """A vehicle and the meter it charges at."""

    vehicle_id: DeviceId
    meter_id: MeterId
    valid_from: Beginning | None = None
    """Left out: from now on."""
    valid_to: Instant | None = None
    """Left out: open."""


class Correction(Struct, frozen=True, rename="camel"):
    """A link of a vehicle as it should have been."""

    corrects: Beginning
    """The `validFrom` of the link as it is now."""
    meter_id: MeterId
    valid_from: Beginning
    valid_to: Instant | None = None
    """Left out: open."""


class VehiclePath(Struct, frozen=True, rename="camel"):
    """A vehicle in the path."""

    vehicle_id: DeviceId


class Removal(Struct, frozen=True):
    """Which link of a vehicle to remove, if any."""

    removes: Beginning | None = None
    """The `validFrom` of the link."""


class LinkFilter(Struct, frozen=True, kw_only=True, rename="camel"):
    """Which links to list."""

    vehicle_id: DeviceId | None = None
    meter_id: MeterId | None = None
    open: Open | None = None
    at: Instant | None = None
    cursor: LinkCursor | None = None
    limit: Limit = LIMIT_DEFAULT


class LinkPage(Page[Link], frozen=True):
    """Links in the order of vehicle and beginning."""


async def pair(call: Call[NoQuery, NoQuery, Pairing]) -> Response:
    """Pair a vehicle with a meter."""
    paired = await make(call.sidecar, call.body)
    return answer(paired, 201, {"Location": f"/v1/links/{segment(call.body.vehicle_id)}"})


async def make(sidecar: Sidecar, wanted: Pairing) -> Paired:
    """Pair them; raises ProblemError 409 or 422."""

    async def change(connection: Connection) -> Paired:
        return await links.pair(connection, wanted.vehicle_id, wanted.meter_id, wanted.valid_from, wanted.valid_to)

    return await _change(sidecar, change)


async def correct(call: Call[VehiclePath, NoQuery, Correction]) -> Response:
    """Change the meter, the beginning or the end of a link."""
    return answer(await mend(call.sidecar, call.path.vehicle_id, call.body))


async def mend(sidecar: Sidecar, vehicle_id: str, wanted: Correction, seen: Link | None = None) -> Link:
    """Correct a link, with `seen` only if it still is so; raises ProblemError 404, 409 or 422."""

    async def change(connection: Connection) -> Link | None:
        link = Link(vehicle_id, wanted.meter_id, wanted.valid_from, wanted.valid_to)
        return await links.correct(connection, wanted.corrects, link, seen)

    if corrected := await _change(sidecar, change):
        return corrected
    raise await _no_such_link(sidecar, vehicle_id, wanted.corrects)


async def list_links(call: Call[NoQuery, LinkFilter, None]) -> Response:
    """List links, with those that have ended."""
    return answer(await find(call.sidecar, call.query))


async def find(sidecar: Sidecar, asked: LinkFilter) -> LinkPage:
    """A page of links."""
    async with sidecar.database.connection() as connection:
        found = await links.list_links(
            connection,
            vehicle_id=asked.vehicle_id,
            meter_id=asked.meter_id,
            open_only=asked.open == "true",
            at=asked.at,
            after=_position(asked.cursor) if asked.cursor else None,
            limit=asked.limit + 1,
        )
    more = len(found) > asked.limit
    items = list(found[: asked.limit])
    return LinkPage(items, _cursor(items[-1]) if more else None)


async def get_link(call: Call[VehiclePath, NoQuery, None]) -> Response:
    """The open link of a vehicle."""
    vehicle_id = call.path.vehicle_id
    async with call.sidecar.database.connection() as connection:
        found = await links.list_links(connection, vehicle_id=vehicle_id, open_only=True, limit=1)
        missing = None if found else await _no_open_link(connection, vehicle_id)
    if missing:
        raise missing
    return answer(found[0])


async def unpair(call: Call[VehiclePath, Removal, None]) -> Response:
    """End the open link of a vehicle now, or remove a link as if it had never been."""
    vehicle_id, begins = call.path.vehicle_id, call.query.removes
    return answer(await remove(call.sidecar, vehicle_id, begins) if begins else await end(call.sidecar, vehicle_id))


async def end(sidecar: Sidecar, vehicle_id: str, since: datetime | None = None) -> Link:
    """End the open link, with `since` only the one that began then; raises ProblemError 404 or 410."""
    async with sidecar.database.connection() as connection:
        if ended := await links.unpair(connection, vehicle_id, since):
            sidecar.cache.clear()
            return ended
        missing = await _no_open_link(connection, vehicle_id, since)
    raise missing


async def remove(sidecar: Sidecar, vehicle_id: str, begins: datetime, seen: Link | None = None) -> Link:
    """Remove a link, with `seen` only if it still is so; raises ProblemError 404 or 409."""

    async def change(connection: Connection) -> Link | None:
        return await links.remove(connection, vehicle_id, begins, seen)

    if removed := await _change(sidecar, change):
        return removed
    raise await _no_such_link(sidecar, vehicle_id, begins)


async def _change(sidecar: Sidecar, change: Callable[[Connection], Awaitable[T]]) -> T:
    """Change links; raises ProblemError for what is refused."""
    failed = None
    async with sidecar.database.connection() as connection:
        try:
            changed = await change(connection)
        except (LinkOverlapError, LinkRangeError) as error:  # told outside, since it is no fault of the connection
            failed = error
    if isinstance(failed, LinkOverlapError):
        raise ProblemError(409, f"The link overlaps another: {failed}", link=failed.link)
    if failed:
        raise invalid("body", {"beginning": "validFrom", "end": "validTo"}[failed.at], str(failed))
    sidecar.cache.clear()
    return changed


async def _no_open_link(connection: Connection, vehicle_id: str, since: datetime | None = None) -> ProblemError:
    """404 for a vehicle that never had a link, 410 for one whose links have ended."""
    if not await links.list_links(connection, vehicle_id=vehicle_id, limit=1):
        return ProblemError(404, f"{vehicle_id} has never been linked")
    which = f"open link that began at {since.isoformat()}" if since else "open link any more"
    return ProblemError(410, f"{vehicle_id} has no {which}; {_history(vehicle_id)}")


async def _no_such_link(sidecar: Sidecar, vehicle_id: str, begins: datetime) -> ProblemError:
    """404 for a vehicle without links, 409 for one that has others."""
    async with sidecar.database.connection() as connection:
        status = 409 if await links.list_links(connection, vehicle_id=vehicle_id, limit=1) else 404
    detail = f"{vehicle_id} has no link that begins at {begins.isoformat()}; {_history(vehicle_id)}"
    return ProblemError(status, detail)


def _history(vehicle_id: str) -> str:
    return f"GET /v1/links?vehicleId={vehicle_id} lists all of its links"


def _cursor(link: Link) -> str:
    return f"{(link.valid_from - _EPOCH) // timedelta(microseconds=1)}~{link.vehicle_id}"


def _position(cursor: str) -> tuple[str, datetime]:
    microseconds, _, vehicle_id = cursor.partition("~")
    return vehicle_id, _EPOCH + timedelta(microseconds=int(microseconds))


_OPEN = Link("vehicle-0001", "meter-0001", datetime(2026, 3, 14, 15, tzinfo=UTC), None)
_ENDED = Link("vehicle-0001", "meter-0007", datetime(2026, 1, 2, 9, 30, tzinfo=UTC), _OPEN.valid_from)
_CORRECTED = replace(_ENDED, meter_id="meter-0002")

OPERATIONS = (
    Operation(
        id="pair",
        method="POST",
        path="/links",
        tag="Links",
        summary="Pair a vehicle with a meter",
        description=(
            "From now on, or from `validFrom` to `validTo`. A new open link ends the open links of the vehicle and of "
            "the meter at its beginning; `ended` says which. Pairing what is paired already changes nothing. A link "
            "that would overlap another one in the past is refused with 409. Past analytics change accordingly."
        ),
        handler=pair,
        role=Role.write,
        body=Pairing,
        body_example=Pairing("vehicle-0001", "meter-0001"),
        answers={
            201: Answer(
                "Paired", Paired, {JSON: Paired(_OPEN, [_ENDED])}, headers={"Location": "where the open link is"}
            )
        },
        problems=(409,),
    ),
    Operation(
        id="listLinks",
        method="GET",
        path="/links",
        tag="Links",
        summary="List links, now and in the past",
        handler=list_links,
        query=LinkFilter,
        answers={200: Answer("A page of links", LinkPage, {JSON: LinkPage([_ENDED, _OPEN], None)})},
    ),
    Operation(
        id="getLink",
        method="GET",
        path="/links/{vehicleId}",
        tag="Links",
        summary="The open link of a vehicle",
        handler=get_link,
        path_type=VehiclePath,
        answers={200: Answer("The open link", Link, {JSON: _OPEN})},
        problems=(404, 410),
    ),
    Operation(
        id="correctLink",
        method="PUT",
        path="/links/{vehicleId}",
        tag="Links",
        summary="Correct a link, open or ended",
        description=(
            "`corrects` is the `validFrom` of the link as it is listed; `meterId`, `validFrom` and `validTo` are what "
            "they should have been, with `validTo` left out for an open link. Other links stay as they are; where one "
            "would overlap, it is 409, and so it is where none of the vehicle begins at `corrects`. May be sent again. "
            "Past analytics change accordingly."
        ),
        handler=correct,
        role=Role.write,
        path_type=VehiclePath,
        body=Correction,
        body_example=Correction(_ENDED.valid_from, "meter-0002", _ENDED.valid_from, _ENDED.valid_to),
        answers={200: Answer("The link as it is now", Link, {JSON: _CORRECTED})},
        problems=(404, 409),
    ),
    Operation(
        id="unpair",
        method="DELETE",
        path="/links/{vehicleId}",
        tag="Links",
        summary="End the open link of a vehicle now, or remove a link",
        description=(
            "Without `removes`, the open link ends now. With it, the link that begins then, open or ended, is removed "
            "as if it had never been: `removes` is its `validFrom` as it is listed. Other links stay as they are, also "
            "those that it ended when it was made; where none of the vehicle begins at `removes`, it is 409. Past "
            "analytics change accordingly."
        ),
        handler=unpair,
        role=Role.write,
        path_type=VehiclePath,
        query=Removal,
        answers={200: Answer("The link as it has ended, or as it was", Link, {JSON: _ENDED})},
        problems=(404, 409, 410),
    ),
)
