"""Which vehicle charges at which meter, over time.

A link is valid in [valid_from, valid_to), or from valid_from on while it is open. Of one vehicle, and of one meter, no
two links overlap. Whoever changes links waits for a turn first, and looks at the clock and at the links only then.
Locks of the two devices would not do: a new link also ends links with a third and a fourth device, which others may be
changing. The transaction is READ COMMITTED whatever the server's default: it sees what was committed while it waited.

| the new link | meets | so |
| --- | --- | --- |
| open, from T | the same pair, open since T or before | nothing changes |
| open, from T | open links of the vehicle or of the meter, since T or before | they end at T |
| open, from T | an open link since after T, or a closed one that ends after T | LinkOverlapError |
| with an end | the same link | nothing changes |
| with an end | any other that it overlaps | LinkOverlapError |
| corrected | any other that it overlaps | LinkOverlapError |
| corrected as it is already | | nothing changes |

Removing a link leaves all others as they are, also those that it ended when it was made.

Energy is derived when it is asked for, so a changed link changes the analytics of the past.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal

import asyncpg
from msgspec import Struct
from msgspec.structs import replace

from sql.pool import Connection, transaction
from sql.queries import query
from sql.store import Kind

AHEAD_MAX = timedelta(minutes=5)
"""How far a link may lie in the future: clocks differ, but nobody knows now when a link will end."""
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
"""No reading is older."""


class Link(Struct, frozen=True, rename="camel"):
    """A vehicle charges at a meter in [valid_from, valid_to); `valid_to` is None while the link is open."""

    vehicle_id: str
    meter_id: str
    valid_from: datetime
    valid_to: datetime | None


class Paired(Struct, frozen=True, rename="camel"):
    """The link that is there now, and the open ones that it ended."""

    link: Link
    ended: list[Link]


class LinkOverlapError(Exception):
    """A link of the vehicle or of the meter is in the way."""

    def __init__(self, link: Link) -> None:
        since = link.valid_from.isoformat()
        until = f"until {link.valid_to.isoformat()}" if link.valid_to else "and the link is open"
        super().__init__(f"vehicle {link.vehicle_id} is linked with meter {link.meter_id} since {since} {until}")
        self.link = link


class LinkRangeError(Exception):
    """The times of a link are not possible."""

    def __init__(self, at: Literal["beginning", "end"], text: str) -> None:
        """`at`: which of the two is wrong."""
        super().__init__(text)
        self.at = at


async def pair(
    connection: Connection, vehicle_id: str, meter_id: str, valid_from: datetime | None, valid_to: datetime | None
) -> Paired:
    """Link a vehicle with a meter, from now on where `valid_from` is None.

    The table at the top says what becomes of other links. Raises LinkOverlapError or
    LinkRangeError; then nothing has changed.
    """
    async with transaction(connection, isolation="read_committed"):
        now = await _turn(connection)
        wanted = Link(vehicle_id, meter_id, valid_from or now, valid_to)
        _check_range(wanted, now)
        overlapped = await _overlapped(connection, wanted)
        for link in overlapped:
            if _is_wanted(link, wanted):
                return Paired(link, [])
        ended = [_ended(link, wanted) for link in overlapped]
        for link in ended:
            await connection.execute(query("end_link"), link.vehicle_id, link.valid_from, link.valid_to)
        await connection.execute(query("insert_link"), vehicle_id, meter_id, wanted.valid_from, valid_to)
        return Paired(wanted, ended)


async def unpair(connection: Connection, vehicle_id: str, since: datetime | None = None) -> Link | None:
    """End the open link of a vehicle now and return it, or None where none is open.

    With `since`, only the one that began then: whoever saw that one does not mean its successor.
    """
    async with transaction(connection, isolation="read_committed"):
        row = await connection.fetchrow(query("end_open_link"), vehicle_id, await _turn(connection), since)
    return _link(row) if row else None


async def correct(connection: Connection, valid_from: datetime, wanted: Link, seen: Link | None = None) -> Link | None:
    """Put `wanted` in the place of its vehicle's link that begins at `valid_from`, and return it.

    None where there is no such link, or where it is not as it was `seen`, unless the one that is wanted is there: a
    correction may be sent again. Raises LinkOverlapError or LinkRangeError; then nothing has changed.
    """
    async with transaction(connection, isolation="read_committed"):
        _check_range(wanted, await _turn(connection))
        overlapped = await _overlapped(connection, wanted)
        old = await _find(connection, wanted.vehicle_id, valid_from, seen)
        if old is None:
            return wanted if wanted in overlapped else None
        for link in overlapped:
            if link != old:
                raise LinkOverlapError(link)
        await connection.execute(
            query("correct_link"), wanted.vehicle_id, valid_from, wanted.meter_id, wanted.valid_from, wanted.valid_to
        )
    return wanted


async def remove(
    connection: Connection, vehicle_id: str, valid_from: datetime, seen: Link | None = None
) -> Link | None:
    """Remove a vehicle's link that begins at `valid_from`, as if it had never been, and return what it was.

    None where there is no such link, or where it is not as it was `seen`.
    """
    async with transaction(connection, isolation="read_committed"):
        await _turn(connection)
        link = await _find(connection, vehicle_id, valid_from, seen)
        if link:
            await connection.execute(query("delete_link"), vehicle_id, valid_from)
    return link


async def list_links(
    connection: Connection,
    *,
    vehicle_id: str | None = None,
    meter_id: str | None = None,
    open_only: bool = False,
    at: datetime | None = None,
    after: tuple[str, datetime] | None = None,
    limit: int,
) -> list[Link]:
    """Links in the order of (vehicle_id, valid_from), those behind `after`; `at` leaves those valid at that moment."""
    after_vehicle, after_time = after or (None, None)
    rows = await connection.fetch(
        query("list_links"), vehicle_id, meter_id, open_only, at, after_vehicle, after_time, limit
    )
    return [_link(row) for row in rows]


async def links_of(
    connection: Connection, kind: Kind, device_id: str, start: datetime, end: datetime, limit: int
) -> list[Link]:
    """The newest links of a vehicle or a meter that were valid in [start, end), the newest first."""
    rows = await connection.fetch(kind.query("find_links_of_device"), device_id, start, end, limit)
    return [_link(row) for row in rows]


async def _turn(connection: Connection) -> datetime:
    """Wait until nobody else changes links; nobody does until the transaction ends. The time is that of the turn."""
    now: datetime = await connection.fetchval(query("lock_links"), column=1)
    return now


def _check_range(link: Link, now: datetime) -> None:
    _check_time("beginning", link.valid_from, now)
    if link.valid_to is not None:
        _check_time("end", link.valid_to, now)
        if link.valid_to <= link.valid_from:
            raise LinkRangeError(
                "end", f"the link would end at {link.valid_to.isoformat()}, which is not after its beginning"
            )


def _check_time(at: Literal["beginning", "end"], time: datetime, now: datetime) -> None:
    if time > now + AHEAD_MAX:
        raise LinkRangeError(at, f"{time.isoformat()} is in the future; a link is made or ended when it happens")
    if time < EARLIEST:
        raise LinkRangeError(at, f"{time.isoformat()} is before {EARLIEST.date().isoformat()}, as no reading is")


async def _find(connection: Connection, vehicle_id: str, valid_from: datetime, seen: Link | None) -> Link | None:
    """The link of a vehicle that begins then; None where there is none, or where it is not as it was `seen`."""
    at_that_time = await list_links(connection, vehicle_id=vehicle_id, at=valid_from, limit=1)
    found = next((link for link in at_that_time if link.valid_from == valid_from), None)
    return None if found is None or (seen is not None and found != seen) else found


async def _overlapped(connection: Connection, wanted: Link) -> list[Link]:
    rows = await connection.fetch(
        query("find_overlapped_links"), wanted.vehicle_id, wanted.meter_id, wanted.valid_from, wanted.valid_to
    )
    return [_link(row) for row in rows]


def _is_wanted(link: Link, wanted: Link) -> bool:
    """Whether `link` is already what is wanted."""
    if wanted.valid_to is not None:
        return link == wanted
    return replace(link, valid_from=wanted.valid_from) == wanted and link.valid_from <= wanted.valid_from


def _ended(link: Link, wanted: Link) -> Link:
    """`link` as the new one ends it; raises LinkOverlapError where it may not."""
    if wanted.valid_to is not None or link.valid_to is not None or wanted.valid_from < link.valid_from:
        raise LinkOverlapError(link)
    return replace(link, valid_to=wanted.valid_from)


def _link(row: asyncpg.Record) -> Link:
    return Link(row["vehicle_id"], row["meter_id"], row["valid_from"], row["valid_to"])
