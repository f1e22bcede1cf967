"""Several daemons on one broker and one database: a share group, and writers that want the same rows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import pytest

from daemon.leave import INTERVAL_S
from dev.broker import PrivateBroker
from dev.house import House, eventually
from dev.load import Load, check
from dev.postgres import PrivatePostgres
from dev.publisher import Publisher
from sql.migrate import migrate

GROUP = "fleet"
FAIR_SHARE = 0.2
"""Of three daemons each gets a third of the messages; a part of those by time is what a test can be sure of."""
DEVICES, READINGS = 500, 10_000
SLOW_ROWS = """
    CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.0001); RETURN NEW; END';
    CREATE TRIGGER dawdle BEFORE UPDATE ON meter_status FOR EACH ROW EXECUTE FUNCTION dawdle();
    ALTER DATABASE fleetwatt SET deadlock_timeout = '10ms'
"""
"""Locks on the live rows are held for long, one after the other, so that two writers are bound to meet."""

Hire = Callable[..., House]


@pytest.fixture
async def hire(tmp_path: Path, broker: PrivateBroker, database_url: str) -> AsyncIterator[Hire]:
    """Gives daemons of one group, each with a folder, a session and a spool of its own; stops them all."""
    hired = []

    def hire(name: str, **settings: str) -> House:
        folder = tmp_path / name
        (folder / "spool").mkdir(parents=True)
        given = {
            "MQTT_CLIENT_ID": name,
            "MQTT_SHARE_GROUP": GROUP,
            "SPOOL_DIR": str(folder / "spool"),
            "REJECTIONS_PER_S_MAX": "0",
            **settings,
        }
        hired.append(House(folder, broker, given.pop("DATABASE_URL", database_url), **given))
        return hired[-1]

    yield hire
    for house in hired:
        await asyncio.to_thread(house.daemon.stop)


async def test_of_three_one_is_killed_and_comes_back_and_a_fourth_joins(
    hire: Hire, broker: PrivateBroker, database_url: str, database: asyncpg.Connection
) -> None:
    one, two, three, four = (hire(f"daemon-{n}") for n in (1, 2, 3, 4))
    for house in (one, two, three):
        await asyncio.to_thread(house.start)
    async with Load(broker.port) as load:
        await load.more(4000)
        received = [house.books().received for house in (one, two, three)]
        await asyncio.to_thread(two.daemon.kill)
        await load.more(2000)
        await asyncio.to_thread(four.start)
        await load.more(2000)
        await asyncio.to_thread(two.start)
        await load.more(2000)
    assert (await check(load, database_url)).complaints() == []
    assert min(received) >= FAIR_SHARE * sum(received), received
    settled = [house.books() for house in (one, two, three, four)]
    assert all(books.unaccounted == 0 and sum(books.stored.values()) > 100 for books in settled), settled
    # What waited in the session of the killed one was a share of the 4000 of its absence.
    assert settled[1].received > FAIR_SHARE * 4000
    for house in (one, two, three, four):
        await asyncio.to_thread(house.daemon.stop)
    assert await deadlocks(database) == 0


async def test_what_waits_for_one_that_never_returns_is_taken_over_under_its_client_id(
    hire: Hire, broker: PrivateBroker, database_url: str
) -> None:
    one, gone = hire("daemon-1"), hire("gone")
    for house in (one, gone):
        await asyncio.to_thread(house.start)
    async with Load(broker.port) as load:
        await load.more(2000)
        await asyncio.to_thread(gone.daemon.kill)
        await load.more(2000)
    missing = (await check(load, database_url, patience_s=1)).lost
    assert missing > FAIR_SHARE * 2000, "the broker keeps for the session of an absent member what was its share"
    heir = hire("heir", MQTT_CLIENT_ID="gone")
    await asyncio.to_thread(heir.start)
    assert (await check(load, database_url)).complaints() == []


async def test_one_that_leaves_stores_its_share_and_gets_nothing_more(
    hire: Hire, broker: PrivateBroker, database_url: str
) -> None:
    one, two = hire("daemon-1"), hire("daemon-2")
    for house in (one, two):
        await asyncio.to_thread(house.start)
    async with Load(broker.port) as load:
        await load.more(1000)
        await asyncio.to_thread(two.daemon.kill)
        await load.more(1000)  # half of them wait in its session
        leaving = hire("leaving", MQTT_CLIENT_ID="daemon-2", SPOOL_DIR=str(two.daemon.log.parent / "spool"))
        assert await asyncio.to_thread(leaving.run, "leave") == 0
        await load.more(1000)
    assert (await check(load, database_url)).complaints() == []
    await asyncio.to_thread(two.start)
    assert two.daemon.log.read_text().count("connected to the broker with a new session") == 2, "the old one ended"


@pytest.mark.parametrize("spool", ["", "spool"])
async def test_one_that_leaves_while_the_database_is_away_waits_for_it(
    hire: Hire, broker: PrivateBroker, own_postgres: PrivatePostgres, tmp_path: Path, spool: str
) -> None:
    url = own_postgres.url("fleetwatt")
    await migrated(url)
    (tmp_path / "spool").mkdir()
    spool_dir = str(tmp_path / spool) if spool else ""
    house = hire("daemon-1", DATABASE_URL=url, SPOOL_DIR=spool_dir, SPOOL_AFTER_S="0.3")
    await asyncio.to_thread(house.start)
    async with Load(broker.port) as load:
        await load.more(500)
        await asyncio.to_thread(house.daemon.kill)
        await load.more(500)
    await asyncio.to_thread(own_postgres.process.stop)
    leaving = asyncio.create_task(asyncio.to_thread(house.run, "leave"))

    async def all_taken() -> bool:
        try:
            books = house.books()
        except OSError:
            return False
        return (books.spooled if spool else books.in_flight) >= 500

    await eventually(all_taken)
    await asyncio.sleep(5 * INTERVAL_S)  # in which it could end
    assert "the session at the broker ends" not in (house.daemon.log.parent / "leave.log").read_text()
    await asyncio.to_thread(own_postgres.start)
    assert await leaving == 0
    assert (await check(load, url)).complaints() == []


async def test_one_that_joins_a_group_gets_its_share_only(hire: Hire, broker: PrivateBroker, database_url: str) -> None:
    alone = hire("daemon-1", MQTT_SHARE_GROUP="")
    await asyncio.to_thread(alone.start)
    await asyncio.to_thread(alone.daemon.stop)
    houses = [hire("joined", MQTT_CLIENT_ID="daemon-1"), hire("daemon-2")]
    for house in houses:
        await asyncio.to_thread(house.start)
    async with Load(broker.port) as load:
        await load.more(2000)
    findings = await check(load, database_url)
    assert findings.complaints() == []
    assert sum(house.books().received for house in houses) == load.acknowledged


def messages(day_s: int, *, down: bool) -> list[tuple[str, bytes]]:
    """Readings of all devices, one after the other and again, from the first to the last or the other way."""
    payload = b'{"kwhConsumedAc":1,"voltage":230,"timestamp":%d}'
    numbers = range(-READINGS + 1, 1) if down else range(READINGS)
    return [(f"meters/m{abs(n) % DEVICES}/reading", payload % (day_s + abs(n) // DEVICES)) for n in numbers]


async def publish_both_ways(broker: PrivateBroker, day_s: int) -> None:
    """All devices in two orders at once. Each daemon gets half of both, so that its batches have them in any order."""
    up, down = (messages(day_s + n * 86400, down=bool(n)) for n in range(2))
    await asyncio.gather(Publisher(broker.port, "up").publish(up), Publisher(broker.port, "down").publish(down))


async def test_writers_and_drains_of_two_daemons_on_the_same_devices_never_deadlock(
    hire: Hire, broker: PrivateBroker, own_postgres: PrivatePostgres
) -> None:
    url = own_postgres.url("fleetwatt")
    await migrated(url, SLOW_ROWS)
    houses = [
        hire(f"daemon-{n}", DATABASE_URL=url, SPOOL_AFTER_S="0.3", RETENTION_DAYS="0", BATCH_ROWS_MAX="1000")
        for n in (1, 2)
    ]
    for house in houses:
        await asyncio.to_thread(house.start)

    async def all_spooled() -> bool:
        return sum(house.books().spooled for house in houses) == 2 * READINGS

    async def all_stored() -> bool:
        return sum(house.books().stored.get("meter", 0) for house in houses) == 4 * READINGS

    await asyncio.to_thread(own_postgres.process.stop)
    await publish_both_ways(broker, 1_750_000_000)
    await eventually(all_spooled)
    await asyncio.to_thread(own_postgres.start)
    await publish_both_ways(broker, 1_760_000_000)
    await eventually(all_stored)
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT count(*) FROM meter_reading") == 4 * READINGS
    assert await connection.fetchval("SELECT count(*) FROM meter_status") == DEVICES
    await connection.close()
    assert "deadlock detected" not in own_postgres.process.log.read_text()


async def test_two_that_get_every_message_store_each_reading_once_and_never_deadlock(
    hire: Hire, broker: PrivateBroker, database_url: str, database: asyncpg.Connection
) -> None:
    """Two daemons without a group by mistake: every row of one is wanted by the other at the same time."""
    houses = [hire(f"daemon-{n}", MQTT_SHARE_GROUP="") for n in (1, 2)]
    for house in houses:
        await asyncio.to_thread(house.start)
    async with Load(broker.port) as load:
        await load.at_once(30_000)
    findings = await check(load, database_url)
    assert findings.complaints() == []
    books = [await house.settled(load.acknowledged) for house in houses]
    # Two processes may receive at the same microsecond. Each then takes the other's reading for its own earlier try.
    claimed = sum(sum(each.stored.values()) for each in books)
    assert findings.stored <= claimed <= findings.stored * 1.01
    for house in houses:
        await asyncio.to_thread(house.daemon.stop)
    assert await deadlocks(database) == 0


async def migrated(url: str, statements: str = "SELECT 1") -> None:
    """Give a database the schema, and what a test wants beside it."""
    connection = await asyncpg.connect(url)
    try:
        await migrate(connection)
        await connection.execute(statements)
    finally:
        await connection.close()


async def deadlocks(connection: asyncpg.Connection) -> int:
    """How many the server has counted in this database, by sessions that have ended: the others count later."""
    statement = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    return int(await connection.fetchval(statement))
