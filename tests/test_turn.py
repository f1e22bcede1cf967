"""Work that several daemons would do is done by one at a time, and the others neither wait nor fail."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg

from dev.house import eventually
from sql import rejections
from sql.partitions import HISTORY_TABLES, Days, drop_before, list_days, make_days
from sql.rejections import Rejection
from sql.turn import MAINTENANCE, take_turn
from tests.conftest import Connect

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
TODAY = NOW.date()
METERS = HISTORY_TABLES[0]


@asynccontextmanager
async def somebody_else_at(work: str, database_url: str) -> AsyncIterator[None]:
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            assert await take_turn(connection, work)
            yield
    finally:
        await connection.close()


async def test_the_turn_is_one_transactions_at_a_time(database: asyncpg.Connection, database_url: str) -> None:
    async with somebody_else_at("this", database_url):
        assert not await take_turn(database, "this")
        assert await take_turn(database, "that")
    assert await take_turn(database, "this")


async def test_the_turn_of_one_that_died_is_free(
    database: asyncpg.Connection, database_url: str, connected: Connect
) -> None:
    dying = await connected(database_url)
    await dying.execute("BEGIN")
    assert await take_turn(dying, MAINTENANCE)
    dying.terminate()

    async def is_free() -> bool:
        return await take_turn(database, MAINTENANCE)

    await eventually(is_free)


async def test_partitions_are_left_to_the_one_that_makes_them(database: asyncpg.Connection, database_url: str) -> None:
    async with somebody_else_at(MAINTENANCE, database_url):
        await make_days(database, [TODAY])
        assert await list_days(database, METERS) == {}
    await make_days(database, [TODAY])
    assert [set((await list_days(database, table)).values()) for table in HISTORY_TABLES] == [{TODAY}, {TODAY}]


async def test_a_batch_of_a_new_day_does_not_wait_for_maintenance(
    database: asyncpg.Connection, database_url: str
) -> None:
    async with somebody_else_at(MAINTENANCE, database_url):
        await Days().ensure(database, METERS, [TODAY])
    assert set((await list_days(database, METERS)).values()) == {TODAY}


async def test_old_partitions_are_left_to_the_one_that_drops_them(
    database: asyncpg.Connection, database_url: str
) -> None:
    await Days().ensure(database, METERS, [TODAY])
    async with somebody_else_at(MAINTENANCE, database_url):
        assert await drop_before(database, METERS, TODAY + timedelta(days=1)) == []
    assert await drop_before(database, METERS, TODAY + timedelta(days=1)) == ["meter_reading_20260102"]


async def test_two_that_drop_at_once_drop_each_partition_once(
    database: asyncpg.Connection, database_url: str, connected: Connect
) -> None:
    days = [TODAY + timedelta(days=n) for n in range(20)]
    await make_days(database, days)
    connections = [database, *[await connected(database_url) for _ in range(3)]]
    dropped: list[str] = []
    while await list_days(database, METERS):
        for some in await asyncio.gather(
            *(drop_before(connection, METERS, days[-1] + timedelta(days=1)) for connection in connections)
        ):
            dropped += some
    assert len(dropped) == len(set(dropped)) == len(days)


async def test_rejections_are_left_to_the_one_that_purges_them(database: asyncpg.Connection, database_url: str) -> None:
    await rejections.insert(database, [Rejection(NOW, "meters/m1/reading", "malformed_json", "", b"{")])
    async with somebody_else_at(MAINTENANCE, database_url):
        assert await rejections.purge(database, NOW + timedelta(days=1), 10) == 0
    assert await rejections.purge(database, NOW + timedelta(days=1), 10) == 1


async def test_a_purge_passes_over_what_a_replay_has_in_hand(
    database: asyncpg.Connection, database_url: str, connected: Connect
) -> None:
    some = [Rejection(NOW + timedelta(seconds=n), "meters/m1/reading", "malformed_json", "", b"{") for n in range(3)]
    await rejections.insert(database, some)
    replaying = await connected(database_url)
    async with replaying.transaction():
        await replaying.execute("DELETE FROM rejection WHERE received_at = $1", NOW)
        assert await rejections.purge(database, NOW + timedelta(days=1), 10) == 2
