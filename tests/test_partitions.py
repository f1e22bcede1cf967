"""The history's partitions: one a UTC day, made ahead and on demand, dropped by retention, in nobody's way."""

import asyncio
from datetime import UTC, date, datetime, timedelta, timezone

import asyncpg
import pytest

from dev.house import PATIENCE_S
from sql import partitions
from sql.partitions import HISTORY_TABLES, Days, days_between, drop_before, list_days
from tests.conftest import Connect

DAY = date(2024, 3, 10)  # clocks change in New York
INSERT = "INSERT INTO meter_reading VALUES ($1, $2, 1, 230, now()) RETURNING tableoid::regclass::text"


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def days_from(day: date, count: int) -> list[date]:
    return [day + timedelta(days=n) for n in range(count)]


async def make(connection: asyncpg.Connection, days: list[date], table: str = "meter_reading") -> None:
    await Days().ensure(connection, table, days)


@pytest.mark.parametrize("table", HISTORY_TABLES)
async def test_partitions_are_made_ahead(database: asyncpg.Connection, table: str) -> None:
    days = days_from(DAY, 8)
    await Days().ensure(database, table, days)

    assert await list_days(database, table) == {f"{table}_{day:%Y%m%d}": day for day in days}


async def test_a_late_day_gets_its_partition_when_it_is_needed(database: asyncpg.Connection) -> None:
    days = Days()
    await days.ensure(database, "meter_reading", [DAY])
    late = DAY - timedelta(days=300)
    with pytest.raises(asyncpg.CheckViolationError):
        await database.fetchval(INSERT, "m1", midnight(late))

    await days.ensure(database, "meter_reading", [late, DAY])

    assert await database.fetchval(INSERT, "m1", midnight(late)) == f"meter_reading_{late:%Y%m%d}"


async def test_a_day_is_not_asked_for_again_until_it_is_forgotten(database: asyncpg.Connection) -> None:
    days = Days()
    await days.ensure(database, "meter_reading", [DAY])
    await database.execute(f"DROP TABLE meter_reading_{DAY:%Y%m%d}")
    await days.ensure(database, "meter_reading", [DAY])
    assert await list_days(database, "meter_reading") == {}

    days.forget("meter_reading")
    await days.ensure(database, "meter_reading", [DAY])
    assert list((await list_days(database, "meter_reading")).values()) == [DAY]


async def test_the_tables_know_their_days_apart(database: asyncpg.Connection) -> None:
    days = Days()
    await days.ensure(database, "meter_reading", [DAY])
    await days.ensure(database, "vehicle_reading", [DAY])
    assert [len(await list_days(database, table)) for table in HISTORY_TABLES] == [1, 1]


async def test_two_connections_make_the_same_days_at_once(
    database: asyncpg.Connection, database_url: str, connected: Connect
) -> None:
    other = await connected(database_url)
    days = days_from(DAY, 20)
    for table in HISTORY_TABLES:
        await asyncio.gather(*(Days().ensure(connection, table, days) for connection in (database, other)))
        assert sorted((await list_days(database, table)).values()) == days


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/New_York"])
async def test_bounds_are_utc_days_whatever_the_time_zone_of_the_session(
    database: asyncpg.Connection, zone: str
) -> None:
    await database.execute(f"SET timezone TO '{zone}'")
    await make(database, days_from(DAY, 2))

    first, last = midnight(DAY), midnight(DAY) + timedelta(days=1, microseconds=-1)
    assert [await database.fetchval(INSERT, "m1", ts) for ts in (first, last, last + timedelta(microseconds=1))] == [
        "meter_reading_20240310",
        "meter_reading_20240310",
        "meter_reading_20240311",
    ]


async def test_a_writer_in_the_middle_of_its_transaction_holds_up_no_new_day(
    database: asyncpg.Connection, database_url: str, connected: Connect
) -> None:
    await make(database, [DAY])
    writer = await connected(database_url)
    async with writer.transaction(), asyncio.timeout(PATIENCE_S):
        await writer.fetchval(INSERT, "m1", midnight(DAY))
        await make(database, [DAY + timedelta(days=1)])


async def test_retention_drops_the_days_before_the_first_that_is_kept(database: asyncpg.Connection) -> None:
    days = days_from(DAY, 5)
    await make(database, days)
    await make(database, days, "vehicle_reading")
    for day in days:
        await database.fetchval(INSERT, "m1", midnight(day))

    dropped = await drop_before(database, "meter_reading", days[2])

    assert dropped == [f"meter_reading_{day:%Y%m%d}" for day in days[:2]]
    kept = await database.fetch("SELECT ts FROM meter_reading ORDER BY ts")
    assert [row["ts"] for row in kept] == [midnight(day) for day in days[2:]]
    assert sorted((await list_days(database, "vehicle_reading")).values()) == days
    assert await drop_before(database, "meter_reading", days[2]) == []


async def test_a_long_query_makes_the_drop_fail_soon_and_holds_up_no_writer(
    database: asyncpg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch, connected: Connect
) -> None:
    monkeypatch.setattr(partitions, "DROP_LOCK_TIMEOUT", "300ms")
    days = days_from(DAY, 3)
    await make(database, days)
    reader, writer = [await connected(database_url) for _ in range(2)]
    waiting = "SELECT count(*) FROM pg_locks WHERE pid = $1 AND NOT granted"
    async with reader.transaction(), asyncio.timeout(PATIENCE_S):
        await reader.execute("TABLE meter_reading")
        drop = asyncio.create_task(drop_before(database, "meter_reading", days[2]))
        while not await writer.fetchval(waiting, database.get_server_pid()):
            assert not drop.done()
        await writer.fetchval(INSERT, "m1", midnight(days[2]))
        with pytest.raises(asyncpg.LockNotAvailableError):
            await drop
        assert sorted((await list_days(database, "meter_reading")).values()) == days

    assert len(await drop_before(database, "meter_reading", days[2])) == 2
    assert await database.fetchval("SELECT count(*) FROM meter_reading") == 1


EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-10))


@pytest.mark.parametrize(
    ("first", "last", "days"),
    [
        (datetime(2024, 3, 10, 5, tzinfo=UTC), datetime(2024, 3, 10, 5, tzinfo=UTC), [DAY]),
        (datetime(2024, 3, 10, tzinfo=UTC), datetime(2024, 3, 10, 23, 59, 59, 999999, tzinfo=UTC), [DAY]),
        (datetime(2024, 3, 10, 23, 59, tzinfo=UTC), datetime(2024, 3, 12, tzinfo=UTC), days_from(DAY, 3)),
        (datetime(2024, 3, 11, 13, 59, tzinfo=EAST), datetime(2024, 3, 11, 14, tzinfo=EAST), days_from(DAY, 2)),
        (datetime(2024, 3, 9, 14, tzinfo=WEST), datetime(2024, 3, 10, 13, 59, tzinfo=WEST), [DAY]),
        (
            datetime(2024, 2, 28, tzinfo=UTC),
            datetime(2024, 3, 1, tzinfo=UTC),
            [date(2024, 2, 28), date(2024, 2, 29), date(2024, 3, 1)],
        ),
    ],
    ids=["one instant", "a whole day", "over midnight", "an eastern zone", "a western zone", "a leap day"],
)
def test_days_between_are_the_utc_days_from_first_to_last(first: datetime, last: datetime, days: list[date]) -> None:
    assert days_between(first, last) == days
