"""Maintenance: partitions ahead, expired ones dropped, the schema watched, through whatever the database does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest

from daemon import maintenance as maintenance_module
from daemon.accounts import Accounts
from daemon.maintenance import DAYS_AHEAD, Maintenance, Retention, days_ahead, first_day_kept
from daemon.metrics import Metrics
from dev.house import eventually
from dev.postgres import PrivatePostgres
from sql import partitions, rejections
from sql.migrate import migrate
from sql.partitions import HISTORY_TABLES, Days, list_days
from sql.pool import Pool, open_pool
from sql.rejections import Rejection

RETENTION_DAYS = 30


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance_module, "INTERVAL_S", 0.05)
    monkeypatch.setattr(maintenance_module, "FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(maintenance_module, "LONGEST_RETRY_S", 0.1)


@asynccontextmanager
async def at_work(
    pool: Pool, retention_days: int = RETENTION_DAYS, rejection_retention_days: int = 0, rollup_retention_days: int = 0
) -> AsyncIterator[tuple[Maintenance, Metrics]]:
    metrics = Metrics(Accounts(), lambda: 0.0)
    maintenance = Maintenance(pool, Retention(retention_days, rollup_retention_days, rejection_retention_days), metrics)
    running = asyncio.create_task(maintenance.run(), name="maintenance")
    try:
        yield maintenance, metrics
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait([running])


async def take_for_rolled_up(connection: asyncpg.Connection) -> None:
    """What is not rolled up is not dropped."""
    await connection.execute(
        "UPDATE rollup_state SET closed_through = now(), rolled_through = now(), counted_through = now()"
    )


def fault(maintenance: Maintenance) -> str | None:
    return maintenance.schema_fault


def today() -> date:
    return datetime.now(UTC).date()


def ahead() -> set[date]:
    return set(days_ahead(today()))


async def days_of(connection: asyncpg.Connection, table: str) -> set[date]:
    return set((await list_days(connection, table)).values())


async def test_a_round_makes_partitions_ahead_and_drops_expired_ones(pool: Pool, database: asyncpg.Connection) -> None:
    kept, expired = [today() - timedelta(days=RETENTION_DAYS - n) for n in (0, -1)]
    for table in HISTORY_TABLES:
        await Days().ensure(database, table, [expired - timedelta(days=100), expired, kept])
    await take_for_rolled_up(database)

    async def done() -> bool:
        return all([await days_of(database, table) == ahead() | {kept} for table in HISTORY_TABLES])

    async with at_work(pool) as (maintenance, metrics):
        await eventually(done)
        assert maintenance.schema_fault is None
        assert metrics.registry.get_sample_value("fleetwatt_partitions_dropped_total") == 4


async def test_history_that_is_not_rolled_up_is_not_dropped(pool: Pool, database: asyncpg.Connection) -> None:
    expired = today() - timedelta(days=RETENTION_DAYS + 1)
    await Days().ensure(database, "meter_reading", [expired])

    async def done() -> bool:
        return await days_of(database, "vehicle_reading") == ahead()

    async def dropped() -> bool:
        return expired not in await days_of(database, "meter_reading")

    async with at_work(pool):
        await eventually(done)
        assert not await dropped()
        await take_for_rolled_up(database)
        await eventually(dropped)
    kept_from = await database.fetchval("SELECT kept_from FROM rollup_state WHERE kind = 'meter'")
    assert kept_from.date() == today() - timedelta(days=RETENTION_DAYS)


async def test_rollups_are_kept_for_a_time_of_their_own(pool: Pool, database: asyncpg.Connection) -> None:
    for month in (date(2024, 1, 1), date(2024, 2, 1), today()):
        await database.execute("SELECT ensure_month('meter_hour', $1)", month)
    await database.execute("UPDATE rollup_state SET kept_from = now()")

    async def months() -> set[str]:
        rows = await database.fetch(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'meter_hour'::regclass"
        )
        return {row[0] for row in rows}

    async def january_dropped() -> bool:
        return await months() == {"meter_hour_202402", f"meter_hour_{today():%Y%m}"}

    async def dropped() -> bool:
        return await months() == {f"meter_hour_{today():%Y%m}"}

    async with at_work(pool, retention_days=0, rollup_retention_days=(today() - date(2024, 2, 20)).days):
        await eventually(january_dropped)
    async with at_work(pool, retention_days=0, rollup_retention_days=60):
        await eventually(dropped)


async def test_without_retention_everything_is_kept(pool: Pool, database: asyncpg.Connection) -> None:
    old = date(2001, 1, 1)
    await Days().ensure(database, "meter_reading", [old])

    async def done() -> bool:
        return await days_of(database, "vehicle_reading") == ahead()

    async with at_work(pool, retention_days=0):
        await eventually(done)
    assert await days_of(database, "meter_reading") == ahead() | {old}


async def keep_rejections(connection: asyncpg.Connection, ages: list[timedelta]) -> None:
    now = datetime.now(UTC)
    await rejections.insert(connection, [Rejection(now - age, "meters/m1/reading", "too_old", "", b"") for age in ages])


async def test_rejections_that_are_past_their_retention_are_purged_slice_by_slice(
    pool: Pool, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance_module, "PURGE_ROWS_MAX", 10)
    day = timedelta(days=1)
    await keep_rejections(database, [90 * day + n * timedelta(seconds=1) for n in range(35)] + [89 * day] * 3)

    async def done() -> bool:
        return bool(await database.fetchval("SELECT count(*) = 3 FROM rejection"))

    async def counted() -> bool:
        return metrics.registry.get_sample_value("fleetwatt_rejections_purged_total") == 36 and await done()

    async with at_work(pool, rejection_retention_days=90) as (_, metrics):
        await eventually(done)
        await keep_rejections(database, [100 * day])
        await eventually(counted)


async def test_without_a_retention_of_their_own_rejections_are_kept(pool: Pool, database: asyncpg.Connection) -> None:
    await keep_rejections(database, [timedelta(days=10_000)])

    async def done() -> bool:
        return await days_of(database, "vehicle_reading") == ahead()

    async with at_work(pool):
        for _ in range(2):
            await eventually(done)
            await database.execute(f"DROP TABLE vehicle_reading_{max(ahead()):%Y%m%d}")
    assert await database.fetchval("SELECT count(*) FROM rejection") == 1


async def test_a_purge_that_meets_a_lock_is_done_later(
    pool: Pool, database: asyncpg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejections, "PURGE_LOCK_TIMEOUT", "50ms")
    await keep_rejections(database, [timedelta(days=100 + n) for n in range(3)])

    async def made() -> bool:
        return await days_of(database, "vehicle_reading") == ahead()

    async def purged() -> bool:
        return not await database.fetchval("SELECT count(*) FROM rejection")

    replaying = await asyncpg.connect(database_url)
    async with at_work(pool, rejection_retention_days=90) as (maintenance, _):
        async with replaying.transaction():
            await replaying.execute("DELETE FROM rejection WHERE id = (SELECT min(id) FROM rejection)")
            for _ in range(2):
                await eventually(made)
                await database.execute(f"DROP TABLE vehicle_reading_{max(ahead()):%Y%m%d}")
            assert not await purged()
            assert maintenance.schema_fault is None
        await eventually(purged)
    await replaying.close()


async def test_rounds_go_on(pool: Pool, database: asyncpg.Connection) -> None:
    async def done() -> bool:
        return await days_of(database, "meter_reading") == ahead()

    async with at_work(pool):
        for _ in range(3):
            await eventually(done)
            await database.execute(f"DROP TABLE meter_reading_{max(ahead()):%Y%m%d}")


async def test_a_long_query_on_one_table_keeps_no_table_from_its_new_partitions(
    pool: Pool, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "DROP_LOCK_TIMEOUT", "50ms")
    expired = today() - timedelta(days=RETENTION_DAYS + 1)
    await Days().ensure(database, "meter_reading", [expired])
    await take_for_rolled_up(database)

    async def made() -> bool:
        return all([await days_of(database, table) >= ahead() for table in HISTORY_TABLES])

    async def dropped() -> bool:
        return expired not in await days_of(database, "meter_reading")

    async with at_work(pool) as (maintenance, _):
        async with database.transaction():
            await database.execute("TABLE meter_reading")
            await eventually(made)
            assert not await dropped()
            assert maintenance.schema_fault is None
        await eventually(dropped)


async def test_a_schema_fault_is_shown_until_somebody_migrates(own_postgres: PrivatePostgres) -> None:
    url = own_postgres.url("fleetwatt")
    async with open_pool(url, "test", 1) as pool, at_work(pool) as (maintenance, _):

        async def faulty() -> bool:
            return maintenance.schema_fault == "the database has no schema yet; run: python -m daemon migrate"

        async def sound() -> bool:
            return maintenance.schema_fault is None

        await eventually(faulty)
        connection = await asyncpg.connect(url)
        await migrate(connection)
        await eventually(sound)

        await connection.execute("INSERT INTO schema_migration (version, name, checksum) VALUES (999, 'newer', '')")

        async def newer() -> bool:
            return "newer release" in (maintenance.schema_fault or "")

        await eventually(newer)
        await connection.execute("DELETE FROM schema_migration WHERE version = 999")
        await eventually(sound)
        await connection.close()


async def test_a_database_that_goes_away_and_comes_back_is_maintained_again(own_postgres: PrivatePostgres) -> None:
    async def made() -> bool:
        connection = await asyncpg.connect(own_postgres.url("fleetwatt"))
        try:
            return await days_of(connection, "meter_reading") == ahead()
        finally:
            await connection.close()

    connection = await asyncpg.connect(own_postgres.url("fleetwatt"))
    await migrate(connection)
    await connection.close()
    own_postgres.process.stop()
    async with open_pool(own_postgres.url("fleetwatt"), "test", 1) as pool, at_work(pool) as (maintenance, _):
        assert fault(maintenance) == "the schema was not checked yet"
        for _ in range(2):
            await asyncio.to_thread(own_postgres.start)
            await eventually(made)
            assert fault(maintenance) is None
            connection = await asyncpg.connect(own_postgres.url("fleetwatt"))
            await connection.execute(f"DROP TABLE meter_reading_{today():%Y%m%d}")
            await connection.close()
            await asyncio.to_thread(own_postgres.process.stop)
        assert fault(maintenance) is None


def test_the_days_ahead_begin_today() -> None:
    assert days_ahead(date(2024, 2, 27)) == [date(2024, 2, 27) + timedelta(days=n) for n in range(DAYS_AHEAD + 1)]


@pytest.mark.parametrize(
    ("retention_days", "first"), [(1, date(2024, 2, 29)), (30, date(2024, 1, 31)), (365, date(2023, 3, 2))]
)
def test_a_day_is_kept_while_a_part_of_it_is_within_the_retention(retention_days: int, first: date) -> None:
    now = datetime(2024, 3, 1, 23, 59, tzinfo=UTC)
    assert first_day_kept(now.date(), retention_days) == first
    assert first <= (now - timedelta(days=retention_days)).date()
