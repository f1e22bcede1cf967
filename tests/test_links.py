"""Which vehicle charges at which meter: what a new link does to the others, and that two at once do no harm."""

import asyncio
import random
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from sql.links import (
    AHEAD_MAX,
    Link,
    LinkOverlapError,
    LinkRangeError,
    Paired,
    correct,
    list_links,
    pair,
    remove,
    unpair,
)
from sql.pool import Pool, lease, open_pool
from tests.conftest import Connect

OVERLAPS = """
SELECT count(*)
FROM vehicle_meter_link AS a
JOIN vehicle_meter_link AS b
    ON a.ctid < b.ctid
    AND (a.vehicle_id = b.vehicle_id OR a.meter_id = b.meter_id)
    AND tstzrange(a.valid_from, a.valid_to) && tstzrange(b.valid_from, b.valid_to)
"""


def at(hour: float) -> datetime:
    return datetime(2024, 5, 1, tzinfo=UTC) + timedelta(hours=hour)


def link(vehicle_id: str, meter_id: str, start: float, end: float | None = None) -> Link:
    return Link(vehicle_id, meter_id, at(start), None if end is None else at(end))


async def add(database: asyncpg.Connection, *links: Link) -> None:
    for one in links:
        await pair(database, one.vehicle_id, one.meter_id, one.valid_from, one.valid_to)


async def stored(database: asyncpg.Connection) -> list[Link]:
    return await list_links(database, limit=1000)


@pytest.fixture
async def database(shared: asyncpg.Connection) -> asyncpg.Connection:
    """The database of this file, emptied."""
    await shared.execute("TRUNCATE vehicle_meter_link")
    return shared


async def test_a_link_from_now_on(database: asyncpg.Connection) -> None:
    before = await database.fetchval("SELECT clock_timestamp()")
    paired = await pair(database, "v1", "m1", None, None)

    assert before <= paired.link.valid_from <= await database.fetchval("SELECT clock_timestamp()")
    assert paired == Paired(Link("v1", "m1", paired.link.valid_from, None), [])
    assert await stored(database) == [paired.link]


# What a new link does to those that are there: links before, the new one, ended, links after.
ACCEPTED = {
    "the vehicle moves to another meter": (
        [link("v1", "m1", 0)],
        link("v1", "m2", 5),
        [link("v1", "m1", 0, 5)],
        [link("v1", "m1", 0, 5), link("v1", "m2", 5)],
    ),
    "the meter gets another vehicle": (
        [link("v1", "m1", 0)],
        link("v2", "m1", 5),
        [link("v1", "m1", 0, 5)],
        [link("v1", "m1", 0, 5), link("v2", "m1", 5)],
    ),
    "two pairs become one": (
        [link("v1", "m1", 0), link("v2", "m2", 1)],
        link("v1", "m2", 5),
        [link("v1", "m1", 0, 5), link("v2", "m2", 1, 5)],
        [link("v1", "m1", 0, 5), link("v1", "m2", 5), link("v2", "m2", 1, 5)],
    ),
    "a link that would end where it began never was": (
        [link("v1", "m1", 5)],
        link("v1", "m2", 5),
        [link("v1", "m1", 5, 5)],
        [link("v1", "m2", 5)],
    ),
    "closed links before are left alone": (
        [link("v1", "m1", 0, 5)],
        link("v1", "m2", 5),
        [],
        [link("v1", "m1", 0, 5), link("v1", "m2", 5)],
    ),
    "the past is filled": (
        [link("v1", "m1", 0, 2), link("v1", "m2", 6)],
        link("v1", "m3", 2, 6),
        [],
        [link("v1", "m1", 0, 2), link("v1", "m3", 2, 6), link("v1", "m2", 6)],
    ),
    "others do not matter": (
        [link("v2", "m2", 0)],
        link("v1", "m1", 1, 2),
        [],
        [link("v1", "m1", 1, 2), link("v2", "m2", 0)],
    ),
}


@pytest.mark.parametrize(("before", "new", "ended", "after"), ACCEPTED.values(), ids=ACCEPTED)
async def test_a_new_link_ends_the_open_ones(
    database: asyncpg.Connection, before: list[Link], new: Link, ended: list[Link], after: list[Link]
) -> None:
    await add(database, *before)

    assert await pair(database, new.vehicle_id, new.meter_id, new.valid_from, new.valid_to) == Paired(new, ended)

    assert await stored(database) == after


REFUSED = {
    "open, before the vehicle's open link": ([link("v1", "m1", 5)], link("v1", "m2", 4), link("v1", "m1", 5)),
    "open, before the meter's open link": ([link("v1", "m1", 5)], link("v2", "m1", 4), link("v1", "m1", 5)),
    "open, the same pair but earlier": ([link("v1", "m1", 5)], link("v1", "m1", 4), link("v1", "m1", 5)),
    "open, into a closed link": ([link("v1", "m1", 0, 5)], link("v1", "m2", 4), link("v1", "m1", 0, 5)),
    "open, before a closed link of the meter": ([link("v1", "m1", 3, 5)], link("v2", "m1", 1), link("v1", "m1", 3, 5)),
    "open, one may be ended and one may not": (
        [link("v1", "m1", 0), link("v2", "m2", 5)],
        link("v1", "m2", 4),
        link("v2", "m2", 5),
    ),
    "closed, inside an open link": ([link("v1", "m1", 0)], link("v1", "m2", 2, 3), link("v1", "m1", 0)),
    "closed, inside the same pair": ([link("v1", "m1", 0)], link("v1", "m1", 2, 3), link("v1", "m1", 0)),
    "closed, around a closed link": ([link("v1", "m1", 2, 3)], link("v1", "m2", 1, 4), link("v1", "m1", 2, 3)),
    "closed, at the end of the meter's": ([link("v1", "m1", 2, 4)], link("v2", "m1", 3, 5), link("v1", "m1", 2, 4)),
}


@pytest.mark.parametrize(("before", "new", "overlapped"), REFUSED.values(), ids=REFUSED)
async def test_an_overlap_is_refused_and_named(
    database: asyncpg.Connection, before: list[Link], new: Link, overlapped: Link
) -> None:
    await add(database, *before)

    with pytest.raises(LinkOverlapError, match=f"vehicle {overlapped.vehicle_id} is linked with") as caught:
        await pair(database, new.vehicle_id, new.meter_id, new.valid_from, new.valid_to)

    assert caught.value.link == overlapped
    assert await stored(database) == before


@pytest.mark.parametrize("again", [None, at(0), at(3)], ids=["from now", "from the same time", "from later"])
async def test_pairing_what_is_paired_changes_nothing(database: asyncpg.Connection, again: datetime | None) -> None:
    await add(database, link("v1", "m1", 0))

    assert await pair(database, "v1", "m1", again, None) == Paired(link("v1", "m1", 0), [])

    assert await stored(database) == [link("v1", "m1", 0)]


async def test_the_same_link_of_the_past_again_changes_nothing(database: asyncpg.Connection) -> None:
    for _ in range(2):
        assert await pair(database, "v1", "m1", at(0), at(1)) == Paired(link("v1", "m1", 0, 1), [])
    assert await stored(database) == [link("v1", "m1", 0, 1)]


LATER = datetime.now(UTC) + AHEAD_MAX + timedelta(days=1)
LONG_AGO = datetime(1999, 12, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("valid_from", "valid_to", "wrong"),
    [
        (at(1), at(1), "end"),
        (at(1), at(0), "end"),
        (None, at(0), "end"),
        (LATER, None, "beginning"),
        (LATER, LATER + timedelta(days=1), "beginning"),
        (LATER, at(0), "beginning"),
        (at(0), LATER, "end"),
        (LONG_AGO, None, "beginning"),
        (LONG_AGO, at(0), "beginning"),
    ],
)
async def test_impossible_times_are_refused_and_it_is_said_which_is_wrong(
    database: asyncpg.Connection, valid_from: datetime | None, valid_to: datetime | None, wrong: str
) -> None:
    with pytest.raises(LinkRangeError) as caught:
        await pair(database, "v1", "m1", valid_from, valid_to)
    assert caught.value.at == wrong
    assert await stored(database) == []


async def test_a_clock_that_is_a_little_ahead_is_no_error(database: asyncpg.Connection) -> None:
    soon = datetime.now(UTC) + AHEAD_MAX / 2
    await pair(database, "v1", "m1", soon, None)

    ended = await unpair(database, "v1")

    assert ended == Link("v1", "m1", soon, soon + timedelta(microseconds=1))


async def test_unpairing_ends_the_open_link(database: asyncpg.Connection) -> None:
    await add(database, link("v1", "m1", 0, 1), link("v1", "m1", 2), link("v2", "m2", 0))

    ended = await unpair(database, "v1")

    assert ended is not None
    assert ended.valid_to is not None
    assert (ended.vehicle_id, ended.valid_from) == ("v1", at(2))
    assert abs(ended.valid_to - datetime.now(UTC)) < timedelta(seconds=30)
    assert await stored(database) == [link("v1", "m1", 0, 1), ended, link("v2", "m2", 0)]
    assert await unpair(database, "v1") is None
    assert await unpair(database, "nobody") is None


async def test_who_saw_one_link_does_not_end_its_successor(database: asyncpg.Connection) -> None:
    await add(database, link("v1", "m1", 0), link("v1", "m2", 5))

    assert await unpair(database, "v1", at(0)) is None
    ended = await unpair(database, "v1", at(5))

    assert ended is not None
    assert await stored(database) == [link("v1", "m1", 0, 5), ended]


# Corrections.

LINKS = [link("v1", "m1", 0, 5), link("v1", "m2", 10), link("v2", "m3", 0, 8)]

CORRECTED = {
    "another meter": (0, link("v1", "m9", 0, 5)),
    "another meter, of an open link": (10, link("v1", "m9", 10)),
    "an earlier beginning": (10, link("v1", "m2", 5)),
    "a later beginning": (10, link("v1", "m2", 11)),
    "another end": (0, link("v1", "m1", 0, 10)),
    "all of it": (0, link("v1", "m3", 8, 9)),
    "an end for an open link": (10, link("v1", "m2", 10, 12)),
    "moved behind the others": (0, link("v1", "m1", 4, 6)),
    "nothing": (0, link("v1", "m1", 0, 5)),
}


@pytest.mark.parametrize(("begins", "wanted"), CORRECTED.values(), ids=CORRECTED)
async def test_one_link_is_corrected_and_no_other_and_it_may_be_sent_again(
    database: asyncpg.Connection, begins: float, wanted: Link
) -> None:
    await add(database, *LINKS)
    others = [one for one in LINKS if one.vehicle_id != "v1" or one.valid_from != at(begins)]

    for _ in range(2):
        assert await correct(database, at(begins), wanted) == wanted

        assert await stored(database) == sorted([wanted, *others], key=lambda one: (one.vehicle_id, one.valid_from))


async def test_a_link_that_ended_is_opened_again(database: asyncpg.Connection) -> None:
    await add(database, link("v1", "m1", 0, 5), link("v2", "m2", 0))

    assert await correct(database, at(0), link("v1", "m1", 0)) == link("v1", "m1", 0)

    assert await stored(database) == [link("v1", "m1", 0), link("v2", "m2", 0)]


NOT_CORRECTED = {
    "into the vehicle's next": (0, link("v1", "m1", 0, 11), link("v1", "m2", 10)),
    "open, before the vehicle's next": (0, link("v1", "m1", 0), link("v1", "m2", 10)),
    "into the one before": (10, link("v1", "m2", 4), link("v1", "m1", 0, 5)),
    "into another's time at the meter": (10, link("v1", "m3", 7), link("v2", "m3", 0, 8)),
    "to what another is": (10, link("v1", "m1", 0, 5), link("v1", "m1", 0, 5)),
}


@pytest.mark.parametrize(("begins", "wanted", "overlapped"), NOT_CORRECTED.values(), ids=NOT_CORRECTED)
async def test_a_correction_that_overlaps_is_refused_and_changes_nothing(
    database: asyncpg.Connection, begins: float, wanted: Link, overlapped: Link
) -> None:
    await add(database, *LINKS)

    with pytest.raises(LinkOverlapError) as caught:
        await correct(database, at(begins), wanted)

    assert caught.value.link == overlapped
    assert await stored(database) == LINKS


@pytest.mark.parametrize(
    "wanted",
    [
        link("v1", "m1", 3, 3),
        link("v1", "m1", 3, 2),
        Link("v1", "m1", datetime(1999, 12, 31, tzinfo=UTC), at(1)),
        Link("v1", "m1", at(0), datetime.now(UTC) + AHEAD_MAX + timedelta(days=1)),
    ],
)
async def test_a_correction_to_impossible_times_is_refused(database: asyncpg.Connection, wanted: Link) -> None:
    await add(database, *LINKS)
    with pytest.raises(LinkRangeError):
        await correct(database, at(0), wanted)
    assert await stored(database) == LINKS


@pytest.mark.parametrize(("vehicle_id", "begins"), [("v1", 1), ("v1", 5), ("v3", 0)])
async def test_a_link_that_is_not_there_is_not_corrected(
    database: asyncpg.Connection, vehicle_id: str, begins: float
) -> None:
    await add(database, *LINKS)
    assert await correct(database, at(begins), link(vehicle_id, "m9", 0, 1)) is None
    assert await stored(database) == LINKS


# Removals.


@pytest.mark.parametrize("begins", [0, 10], ids=["ended", "open"])
async def test_one_link_is_removed_and_no_other(database: asyncpg.Connection, begins: float) -> None:
    await add(database, *LINKS)
    (removed,) = (one for one in LINKS if one.vehicle_id == "v1" and one.valid_from == at(begins))

    assert await remove(database, "v1", at(begins)) == removed

    assert await stored(database) == [one for one in LINKS if one != removed]
    assert await remove(database, "v1", at(begins)) is None


async def test_what_a_link_ended_stays_ended_when_it_is_removed(database: asyncpg.Connection) -> None:
    await add(database, link("v1", "m1", 0), link("v1", "m2", 5))
    await remove(database, "v1", at(5))
    assert await stored(database) == [link("v1", "m1", 0, 5)]


@pytest.mark.parametrize(("vehicle_id", "begins"), [("v1", 1), ("v1", 5), ("v3", 0)])
async def test_a_link_that_is_not_there_is_not_removed(
    database: asyncpg.Connection, vehicle_id: str, begins: float
) -> None:
    await add(database, *LINKS)
    assert await remove(database, vehicle_id, at(begins)) is None
    assert await stored(database) == LINKS


async def test_who_saw_a_link_does_not_remove_what_it_has_become(database: asyncpg.Connection) -> None:
    await add(database, *LINKS)
    for other in (link("v1", "m1", 0), link("v1", "m9", 0, 5)):
        assert await remove(database, "v1", at(0), other) is None
    assert await stored(database) == LINKS
    assert await remove(database, "v1", at(0), LINKS[0]) == LINKS[0]


# Lists.

HISTORY = [link("v1", "m1", 0, 2), link("v1", "m2", 2, 4), link("v1", "m1", 6), link("v2", "m2", 5)]


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({}, [0, 1, 2, 3]),
        ({"vehicle_id": "v1"}, [0, 1, 2]),
        ({"meter_id": "m2"}, [1, 3]),
        ({"vehicle_id": "v1", "meter_id": "m1"}, [0, 2]),
        ({"open_only": True}, [2, 3]),
        ({"at": at(0)}, [0]),
        ({"at": at(2)}, [1]),
        ({"at": at(4)}, []),
        ({"at": at(99)}, [2, 3]),
        ({"vehicle_id": "v2", "open_only": True, "at": at(5)}, [3]),
        ({"vehicle_id": "nobody"}, []),
    ],
)
async def test_links_are_listed_by_filter(
    database: asyncpg.Connection, filters: dict[str, object], wanted: list[int]
) -> None:
    await add(database, *HISTORY)
    assert await list_links(database, limit=10, **filters) == [HISTORY[n] for n in wanted]  # type: ignore[arg-type] # - one test for all of them


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
async def test_pages_together_are_the_list(database: asyncpg.Connection, limit: int) -> None:
    await add(database, *HISTORY)
    listed: list[Link] = []
    after = None
    while page := await list_links(database, after=after, limit=limit):
        assert len(page) <= limit
        listed += page
        after = (page[-1].vehicle_id, page[-1].valid_from)
    assert listed == HISTORY


# Many at once.


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_many_who_pair_at_once_leave_no_overlap(database_url: str, isolation: str, connected: Connect) -> None:
    database = await connected(database_url)
    name = await database.fetchval("SELECT current_database()")
    await database.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '50ms'")
    await database.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    async with open_pool(database_url, "test", 32) as pool, asyncio.TaskGroup() as tasks:
        for seed in range(32):
            tasks.create_task(_attack(pool, random.Random(seed)))

    assert await database.fetchval(OVERLAPS) == 0
    assert await database.fetchval("SELECT count(*) FROM vehicle_meter_link WHERE valid_to IS NULL") > 0


async def _attack(pool: Pool, draw: random.Random) -> None:
    """Change links at random until five changes were made."""
    changes = 0
    while changes < 5:
        async with lease(pool) as connection:
            changes += await _change(connection, draw)


async def _change(connection: asyncpg.Connection, draw: random.Random) -> int:
    vehicle_id, meter_id = f"v{draw.randrange(10)}", f"m{draw.randrange(10)}"
    hour = draw.randrange(10_000)
    times: tuple[datetime | None, datetime | None] = None, None
    match draw.randrange(10):
        case 0:
            return int(await unpair(connection, vehicle_id) is not None)
        case 4:
            return await _correct(connection, vehicle_id, meter_id, draw)
        case 5:
            return await _remove(connection, vehicle_id, draw)
        case 1 | 2:
            times = at(hour), at(hour + draw.randrange(1, 50))
        case 3:
            times = at(hour), None
    try:
        await pair(connection, vehicle_id, meter_id, *times)
    except (LinkOverlapError, LinkRangeError):
        return 0
    return 1


async def _correct(connection: asyncpg.Connection, vehicle_id: str, meter_id: str, draw: random.Random) -> int:
    links = await list_links(connection, vehicle_id=vehicle_id, limit=100)
    if not links:
        return 0
    one = draw.choice(links)
    moved = timedelta(hours=draw.randrange(-2, 3))
    wanted = Link(vehicle_id, meter_id, one.valid_from + moved, one.valid_to and one.valid_to + moved)
    try:
        return int(await correct(connection, one.valid_from, wanted) is not None)
    except (LinkOverlapError, LinkRangeError):
        return 0


async def _remove(connection: asyncpg.Connection, vehicle_id: str, draw: random.Random) -> int:
    links = await list_links(connection, vehicle_id=vehicle_id, limit=100)
    return int(bool(links) and await remove(connection, vehicle_id, draw.choice(links).valid_from) is not None)


async def test_who_writes_by_hand_cannot_make_an_overlap_either(database: asyncpg.Connection) -> None:
    await add(database, link("v1", "m1", 0, 5), link("v2", "m2", 0))
    insert = "INSERT INTO vehicle_meter_link VALUES ($1, $2, $3, $4)"
    for one in (link("v1", "m9", 4, 6), link("v9", "m1", 1, 2), link("v2", "m8", 7), link("v8", "m2", 7, 8)):
        with pytest.raises(asyncpg.ExclusionViolationError):
            await database.execute(insert, one.vehicle_id, one.meter_id, one.valid_from, one.valid_to)
    for one in (link("v3", "m3", 2, 2), link("v3", "m3", 2, 1), link("no\nid", "m3", 2), link("v3", "", 2)):
        with pytest.raises(asyncpg.CheckViolationError):
            await database.execute(insert, one.vehicle_id, one.meter_id, one.valid_from, one.valid_to)


async def test_links_of_a_vehicle_and_of_a_meter_are_found_by_index(database: asyncpg.Connection) -> None:
    await database.execute(
        """
        INSERT INTO vehicle_meter_link
        SELECT 'v' || n, 'm' || n, start, start + interval '1 hour'
        FROM generate_series(1, 2000) AS n, unnest($1::timestamptz[]) AS start
        """,
        [at(0), at(1)],
    )
    await database.execute("ANALYZE vehicle_meter_link")
    for column, device in (("vehicle_id", "v7"), ("meter_id", "m7")):
        plan = await database.fetch(f"EXPLAIN SELECT * FROM vehicle_meter_link WHERE {column} = '{device}'")
        assert "Index" in plan[0][0] or "Bitmap" in plan[0][0]
