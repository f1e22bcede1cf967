"""What the matrix of faults (`test_fault_matrix.py`) has no row for: the start without anybody there, a backlog."""

import asyncio
import signal
import sys
from pathlib import Path

import asyncpg

from dev.broker import PrivateBroker
from dev.house import House, eventually
from dev.load import Load, check
from dev.postgres import PrivatePostgres
from dev.publisher import Publisher


async def test_sigint_is_as_good_as_sigterm(house: House) -> None:
    async with Load(house.broker.port) as load:
        await load.more(2000)
        house.daemon.signal(signal.SIGINT)
        # 0 and not -9: it ended by itself within the 5 s that it has.
        assert await asyncio.to_thread(house.daemon.wait, 5) == 0
        assert "not_acknowledged=0" in house.daemon.log_tail(1)
        await asyncio.to_thread(house.start)
    assert (await check(load, house.database_url)).complaints() == []
    assert house.books().unaccounted == 0


async def test_the_daemon_starts_with_nothing_there_and_recovers_by_itself(
    tmp_path: Path, broker: PrivateBroker, own_postgres: PrivatePostgres
) -> None:
    broker.process.stop()
    own_postgres.process.stop()
    house = House(tmp_path, broker, own_postgres.url("fleetwatt"))
    house.daemon.start(lambda: "broker away" in house.daemon.log.read_text())
    try:
        assert not house.is_ready()
        broker.start()
        await eventually(lambda: said(house, "subscribed"))  # before that there is no session to keep messages in
        await Publisher(broker.port, "device").publish([("meters/m1/reading", b'{"kwhConsumedAc":1,"voltage":230}')])
        own_postgres.start()
        await eventually(lambda: said(house, "the flow stands still"))
        await eventually(lambda: said(house, "run: python -m daemon migrate"))
        await migrated(house)
        books = await house.settled(1)
        assert (books.stored, books.unaccounted) == ({"meter": 1}, 0)

        async def ready() -> bool:
            return house.is_ready()

        await eventually(ready)
    finally:
        assert house.daemon.stop(5) == 0


async def test_a_backlog_is_stored_when_the_daemon_comes_back(house: House, database: asyncpg.Connection) -> None:
    house.daemon.stop()
    payload = b'{"kwhConsumedAc":0.5,"voltage":230,"timestamp":%d}'
    messages = [(f"meters/m{n % 1000}/reading", payload % (1_700_000_000 + n // 1000 * 60)) for n in range(100_000)]
    await Publisher(house.broker.port, "devices").publish(messages)
    house.start()
    await house.settled(100_000)
    assert await database.fetchval("SELECT sum(kwh_consumed_ac) FROM meter_reading") == 50_000
    assert await database.fetchval("SELECT count(*) FROM meter_status") == 1000


async def said(house: House, text: str) -> bool:
    """Whether the daemon's log has it."""
    return text in house.daemon.log.read_text()


async def migrated(house: House) -> None:
    """Run `python -m daemon migrate` on the house's database."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "daemon", "migrate", env={"DATABASE_URL": house.database_url}
    )
    assert await process.wait() == 0
