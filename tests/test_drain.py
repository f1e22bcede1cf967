"""A database that stays away: readings go to the spool, are acknowledged, and from there to the table, once."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from structlog.testing import capture_logs

from daemon.batch import Batch, Contents
from daemon.drain import Drain
from daemon.settle import Settler
from daemon.spool import Spool
from dev.house import eventually
from dev.network import Network
from sql.pool import Pool, open_pool
from tests.test_writer import ROWS_MAX, SPOOL_AFTER_S, Desk, at_work, end_sessions, meter, vehicle

MEBIBYTE = 2**20
PATIENT_S = 20.0
"""A writer that waits so long gives nothing to the spool because the machine is slow."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outages of a test are short, so the waits between two tries are as well."""
    for name, delay_s in {"daemon.settle.LONGEST_RETRY_S": 0.05, "daemon.drain.LONGEST_RETRY_S": 0.05}.items():
        monkeypatch.setattr(name, delay_s)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(str(tmp_path), 64 * MEBIBYTE)
    yield spool
    spool.close()


@pytest.fixture
def network(database_url: str) -> Iterator[Network]:
    with Network(database_url) as network:
        yield network


@pytest.fixture
async def far_pool(network: Network) -> AsyncIterator[Pool]:
    """A pool whose way to the database can be cut."""
    async with open_pool(network.url, "test", 6) as pool:
        yield pool


@asynccontextmanager
async def draining(desk: Desk, pool: Pool, spool: Spool) -> AsyncIterator[None]:
    """A drain at work for the time of the block, as in a daemon that was just started."""
    settler = Settler(pool, desk.outage, desk.flood, desk.metrics)
    drain = asyncio.create_task(Drain(spool, settler, desk.outage, pool, desk.accounts, ROWS_MAX).run())
    try:
        yield
    finally:
        drain.cancel()
        await asyncio.wait([drain])


async def emptied(spool: Spool) -> None:
    """Wait until everything left the spool."""

    async def is_empty() -> bool:
        return bool(spool.readings == 0)

    await eventually(is_empty, 40)


async def all_stored(desk: Desk) -> None:
    """Wait until everything is in the table. On a slow machine some of it comes there by way of the spool."""

    async def is_stored() -> bool:
        return not (desk.accounts.in_flight or desk.accounts.spooled)

    await eventually(is_stored)


async def stored(database: asyncpg.Connection) -> list[str]:
    """The devices of all readings in the table."""
    found = await database.fetch(
        "SELECT meter_id AS id FROM meter_reading UNION ALL SELECT vehicle_id FROM vehicle_reading ORDER BY 1"
    )
    return [row["id"] for row in found]


async def test_readings_are_acknowledged_from_the_spool_and_stored_when_the_database_is_back(
    far_pool: Pool, network: Network, spool: Spool, database: asyncpg.Connection
) -> None:
    async with at_work(far_pool, spool) as desk, draining(desk, far_pool, spool):
        desk.deliver(meter("m0"))
        await all_stored(desk)
        network.down()
        desk.deliver(meter("m1"), vehicle("v1"), ("meters/m2/reading", b"{"))
        await desk.all_acknowledged()
        desk.deliver(meter("m3"))  # this one goes to the spool without a try
        await desk.all_acknowledged()
        assert desk.accounts.spooled == spool.readings == 4
        assert await stored(database) == ["m0"]
        assert "REFUSED" in str(desk.outage.error).upper()
        network.up()
        await emptied(spool)
        desk.deliver(meter("m4"))
        await desk.all_acknowledged()
        assert desk.outage.error is None
    assert await stored(database) == ["m0", "m1", "m3", "m4", "v1"]
    assert await database.fetchval("SELECT count(*) FROM rejection") == 1
    assert desk.books() == {"stored": 5, "malformed_json": 1}
    assert desk.accounts.spooled == 0


async def test_a_short_absence_stays_with_the_broker(pool: Pool, spool: Spool, database: asyncpg.Connection) -> None:
    async with at_work(pool, spool, PATIENT_S) as desk:
        for number in range(20):
            desk.deliver(*(meter(f"m{number}", minute) for minute in range(10)))
            await end_sessions(database)
            await desk.all_acknowledged()
    assert spool.readings == 0
    assert desk.books() == {"stored": 200}


async def test_a_database_that_does_not_answer_is_away_as_well(far_pool: Pool, network: Network, spool: Spool) -> None:
    async with at_work(far_pool, spool) as desk:
        async with draining(desk, far_pool, spool):
            desk.deliver(meter("m0"))
            await all_stored(desk)
        network.black_hole = True
        desk.deliver(meter("m1"))
        await desk.all_acknowledged()
        assert spool.readings == 1
        assert desk.outage.error == "the database did not store a batch in time"
        network.black_hole = False


async def test_a_table_that_is_locked_is_waited_for_in_the_spool(
    pool: Pool, spool: Spool, database: asyncpg.Connection
) -> None:
    async with at_work(pool, spool) as desk:
        async with database.transaction():
            await database.execute("LOCK TABLE meter_reading")
            desk.deliver(meter("m1"))
            await desk.all_acknowledged()
            assert spool.readings == 1
        async with draining(desk, pool, spool):
            await emptied(spool)
    assert desk.books() == {"stored": 1}


async def test_what_is_ours_to_mend_stops_the_flow_and_does_not_fill_the_spool(
    pool: Pool, spool: Spool, database: asyncpg.Connection
) -> None:
    spool_after_s = 2.0  # a slow machine must have met the fault by then
    async with at_work(pool, spool, spool_after_s) as desk:
        await database.execute("ALTER TABLE meter_status RENAME TO elsewhere")
        desk.deliver(meter("m1"))
        await eventually(lambda: is_true(desk.outage.is_ours))
        await asyncio.sleep(1.2 * spool_after_s)
        assert (spool.readings, desk.session.acknowledged) == (0, [])
        await database.execute("ALTER TABLE elsewhere RENAME TO meter_status")
        await desk.all_acknowledged()


async def test_an_absence_that_turns_out_to_be_ours_to_mend_stops_the_flow_as_well(
    pool: Pool, spool: Spool, database: asyncpg.Connection
) -> None:
    """The database is back, restored from an empty backup: nothing more goes to the spool."""
    async with at_work(pool, spool) as desk, draining(desk, pool, spool):
        async with database.transaction():
            await database.execute("LOCK TABLE meter_reading")
            desk.deliver(meter("m1"))
            await desk.all_acknowledged()
            await database.execute("ALTER TABLE meter_status RENAME TO elsewhere")
        await eventually(lambda: is_true(desk.outage.is_ours))
        desk.deliver(meter("m2"))
        await asyncio.sleep(3 * SPOOL_AFTER_S)
        assert (spool.readings, desk.session.acknowledged) == (1, [1])
        await database.execute("ALTER TABLE elsewhere RENAME TO meter_status")
        await desk.all_acknowledged()
        await emptied(spool)
    assert await stored(database) == ["m1", "m2"]


async def test_a_database_that_is_slow_to_connect_to_is_back_as_well(
    far_pool: Pool, network: Network, spool: Spool, database: asyncpg.Connection
) -> None:
    """The first of two name servers is dead, say: connecting takes longer than a small question may."""
    async with at_work(far_pool, spool) as desk:
        network.down()
        desk.deliver(meter("m1"))
        await desk.all_acknowledged()
        network.up()
        network.latency_s = 0.35  # five round trips to connect
        async with draining(desk, far_pool, spool):
            await emptied(spool)
        network.latency_s = 0.0
    assert await stored(database) == ["m1"]


async def is_true(value: bool) -> bool:
    return value


async def test_a_full_spool_acknowledges_nothing_and_takes_more_when_there_is_room(
    far_pool: Pool, network: Network, tmp_path: Path, database: asyncpg.Connection
) -> None:
    small, dice = Spool(str(tmp_path), MEBIBYTE), random.Random(1)
    async with at_work(far_pool, small) as desk, draining(desk, far_pool, small):
        network.down()
        with capture_logs() as logs:
            while "the spool takes nothing more, the broker holds the rest" not in {line["event"] for line in logs}:
                noise = dice.randbytes(5000).hex().encode()
                payload = b'{"kwhConsumedAc":1,"voltage":230,"timestamp":1700000000,"x":"%s"}' % noise
                desk.deliver((f"meters/m{desk.sent}/reading", payload))
                await asyncio.sleep(0.01)
        assert small.readings > 50
        assert desk.session.acknowledged == desk.all_sent[: small.readings]
        network.up()
        await desk.all_acknowledged()
        await emptied(small)
    assert len(await stored(database)) == desk.sent
    assert desk.books() == {"stored": desk.sent}
    small.close()


async def test_live_readings_go_on_while_the_spool_is_drained(
    pool: Pool, spool: Spool, database: asyncpg.Connection
) -> None:
    async with at_work(pool, spool) as desk:
        await fill(desk, database, batches=40)
    assert spool.readings == 40 * 50
    async with at_work(pool, spool, PATIENT_S) as desk:
        desk.accounts.recover(spool.readings)
        async with draining(desk, pool, spool):
            desk.deliver(meter("live"))
            await desk.all_acknowledged()
            assert await database.fetchval("SELECT count(*) FROM meter_status WHERE meter_id = 'live'") == 1
            await emptied(spool)
    assert desk.books() == {"stored": 40 * 50 + 1}


async def fill(desk: Desk, database: asyncpg.Connection, batches: int) -> None:
    """Put readings into the spool while the table is locked."""
    async with database.transaction():
        await database.execute("LOCK TABLE meter_reading")
        for number in range(batches):
            desk.deliver(*(meter(f"m{number}", minute) for minute in range(50)))
            await desk.all_acknowledged()


async def test_a_flood_that_leaves_nothing_to_store_does_not_end_an_outage(
    far_pool: Pool, network: Network, spool: Spool
) -> None:
    async with at_work(far_pool, spool) as desk:
        network.down()
        desk.deliver(meter("m1"))
        await desk.all_acknowledged()
        await Settler(far_pool, desk.outage, desk.flood, desk.metrics).settle(Contents(not_kept=Counter(too_old=3)))
        assert desk.outage.is_lasting
        assert desk.outage.last_commit_at is None


async def test_what_is_on_its_way_to_the_spool_at_the_end_is_acknowledged(
    pool: Pool, spool: Spool, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the broker brings it again, and a reading without a time of its own would be there twice."""
    put, began = spool.put, asyncio.Event()

    async def slow_disk(batch: Batch) -> None:
        began.set()
        await asyncio.sleep(0.3)
        await put(batch)

    monkeypatch.setattr(spool, "put", slow_disk)
    desk = Desk(pool, spool)
    writing = asyncio.create_task(desk.writer.run())
    async with database.transaction():
        await database.execute("LOCK TABLE meter_reading")
        desk.deliver(meter("m1"))
        await began.wait()
        writing.cancel()
        await asyncio.wait([writing])
    assert desk.session.acknowledged == [1]
    assert (desk.accounts.spooled, desk.accounts.in_flight, spool.readings) == (1, 0, 1)


async def test_a_late_reading_from_the_spool_does_not_turn_live_state_back(
    pool: Pool, spool: Spool, database: asyncpg.Connection
) -> None:
    async with at_work(pool, spool) as desk:
        async with database.transaction():
            await database.execute("LOCK TABLE meter_reading")
            desk.deliver(meter("m1", minute=1, kwh=1))
            await desk.all_acknowledged()
        desk.outage.stored()
        desk.deliver(meter("m1", minute=2, kwh=2))
        await desk.all_acknowledged()
        async with draining(desk, pool, spool):
            await emptied(spool)
    assert await database.fetchval("SELECT kwh_consumed_ac FROM meter_status") == 2
    assert await database.fetchval("SELECT count(*) FROM meter_reading") == 2


async def test_what_was_stored_and_not_deleted_is_known_again_after_a_crash(
    pool: Pool, tmp_path: Path, database: asyncpg.Connection
) -> None:
    """Killed between the commit and the deletion: the next process stores it all again, and nothing is there twice."""
    first = Spool(str(tmp_path), 64 * MEBIBYTE)
    contents: list[Contents] = []
    async with at_work(pool, first) as desk:
        async with database.transaction():
            await database.execute("LOCK TABLE meter_reading")
            bad = ("meters/bad/reading", b"{")
            desk.deliver(meter("m1"), meter("m1", kwh=2), meter("m2"), meter("m2"), vehicle("v1"), bad, bad)
            await desk.all_acknowledged()
        spooled = await first.oldest(ROWS_MAX)
        assert spooled is not None
        contents.append(spooled.contents)
        once = await Settler(pool, desk.outage, desk.flood, desk.metrics).settle(spooled.contents)
    first.close()

    second = Spool(str(tmp_path), 64 * MEBIBYTE)
    async with at_work(pool, second) as desk:
        desk.accounts.recover(second.readings)
        async with draining(desk, pool, second):
            await emptied(second)
    second.close()
    assert await stored(database) == ["m1", "m2", "v1"]
    reasons = await database.fetch("SELECT reason, count(*) FROM rejection GROUP BY 1 ORDER BY 1")
    assert [tuple(row) for row in reasons] == [("conflict", 1), ("malformed_json", 2)]
    assert desk.books() == {"stored": 3, "duplicate": 1, "conflict": 1, "malformed_json": 2}
    assert (once.stored.total(), once.duplicate.total(), once.rejected.total()) == (3, 1, 3)


async def test_a_spool_that_breaks_is_only_as_bad_as_none(
    pool: Pool, spool: Spool, tmp_path: Path, database: asyncpg.Connection
) -> None:
    async with at_work(pool, spool) as desk:
        async with database.transaction():
            await database.execute("LOCK TABLE meter_reading")
            (tmp_path / "spool.sqlite3").unlink()
            desk.deliver(meter("m1"))
            await asyncio.sleep(1)
            assert desk.session.acknowledged == []
        await desk.all_acknowledged()
    assert desk.books() == {"stored": 1}
