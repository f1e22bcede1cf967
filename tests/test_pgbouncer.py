"""The real pgbouncer, in transaction mode, between us and the database, with fewer sessions than connections."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx2
import pytest

from dev.broker import PrivateBroker
from dev.house import ROOT, House, eventually
from dev.load import Load, check
from dev.pooler import PrivatePooler, find_pgbouncer
from dev.postgres import PrivatePostgres
from dev.processes import Child, ProcessError, free_port, port_answers
from sql import devices, store
from sql.migrate import load, migrate
from sql.outside import is_free
from sql.partitions import Days
from sql.pool import TRANSACTION_LIMITS, connect, has_own_session, lease, open_pool, transaction
from sql.store import METER

SESSIONS = "2"
"""What the pooler has, for the six connections of a daemon and the eleven of a sidecar."""

try:
    find_pgbouncer()
except ProcessError as missing:  # deploy/install-package has said what to type; nothing else needs a pooler
    pytestmark = pytest.mark.skip(reason=str(missing))


@contextmanager
def running_pooler(database_url: str) -> Iterator[PrivatePooler]:
    """A pooler before a database. Not in pytest's own folder, which is closed to the account that the pooler takes."""
    with tempfile.TemporaryDirectory(prefix="fleetwatt-") as folder:
        pooler = PrivatePooler(Path(folder), database_url, {"default_pool_size": SESSIONS})
        pooler.start()
        try:
            yield pooler
        finally:
            pooler.process.stop()


@pytest.fixture
def pooler(database_url: str) -> Iterator[PrivatePooler]:
    """A pooler before the test's own database."""
    with running_pooler(database_url) as pooler:
        yield pooler


@pytest.fixture
def house(tmp_path: Path, broker: PrivateBroker, pooler: PrivatePooler) -> Iterator[House]:
    """A daemon that knows no other way to the database, without a spool."""
    house = House(tmp_path, broker, pooler.url, REJECTIONS_PER_S_MAX="0")
    house.start()
    yield house
    house.daemon.stop()


@pytest.fixture
async def api(tmp_path: Path, pooler: PrivatePooler) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a sidecar that knows no other way either."""
    port = free_port()
    environment = {**os.environ, "DATABASE_URL": pooler.url, "API_PORT": str(port), "RETENTION_DAYS": "0"}
    sidecar = Child("api", [sys.executable, "-m", "api"], tmp_path, env=lambda: environment, cwd=ROOT)
    await asyncio.to_thread(sidecar.start, lambda: port_answers(port))
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client
    await asyncio.to_thread(sidecar.stop)


def reading(device: str, ts: datetime) -> store.Row:
    return (device, ts, 1.0, 230.0, ts, b"")


async def test_connections_share_sessions_and_leave_nothing_on_them(pooler: PrivatePooler) -> None:
    """More connections than sessions, of several processes as it were, each with statements of its own."""
    days, ts = Days(), datetime.now(UTC)

    async def use(name: str, n: int) -> None:
        async with open_pool(pooler.url, name, 2) as pool:
            for step in range(10):
                async with lease(pool) as connection:
                    assert not await has_own_session(connection)
                    assert await connection.fetchval("SELECT current_setting('application_name') || $1", "") == name
                    assert await connection.fetchval("SHOW timezone") == "UTC"
                    rows = [reading(f"m{n}-{m}", ts + timedelta(seconds=step)) for m in range(50)]
                    await store.copy(connection, METER, store.sort(rows), days)
                async with lease(pool) as connection:
                    chunks = devices.stream_readings(connection, METER, f"m{n}-7", ts, ts + timedelta(days=1))
                    assert sum([len(chunk) async for chunk in chunks]) == step + 1

    await asyncio.gather(*(use(f"client {n}", n) for n in range(6)))
    connection = await connect(pooler.url)
    assert await connection.fetchval("SELECT count(*) FROM meter_reading") == 6 * 10 * 50
    for _ in range(20):
        assert await connection.fetch("SELECT name FROM pg_prepared_statements") == []
        assert await connection.fetch("SELECT * FROM pg_locks WHERE locktype = 'advisory'") == []
    await connection.close()


async def test_a_transaction_has_its_limits_and_takes_them_along(pooler: PrivatePooler) -> None:
    connection = await connect(pooler.url)
    async with transaction(connection):
        limits = [await connection.fetchval("SELECT current_setting($1)", name) for name in TRANSACTION_LIMITS]
    assert limits == list(TRANSACTION_LIMITS.values())
    assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "0"
    await connection.close()


async def test_one_that_hangs_in_a_transaction_does_not_keep_its_locks(
    pooler: PrivatePooler, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection to the pooler is alive, so the pooler has no reason to end it."""
    monkeypatch.setattr("sql.pool._SET_LIMITS", "SET LOCAL idle_in_transaction_session_timeout = '200ms'")
    hanging = await connect(pooler.url)

    async def hang() -> None:
        async with transaction(hanging):
            await hanging.execute("LOCK TABLE meter_status")
            await database.execute("TRUNCATE meter_status")  # waits until the other was ended
            await hanging.execute("SELECT 1")

    with pytest.raises(asyncpg.InterfaceError, match="closed"):
        await hang()
    hanging.terminate()


async def test_several_migrate_at_once_through_the_pooler(postgres: PrivatePostgres) -> None:
    postgres.create_database("unmigrated")
    with running_pooler(postgres.url("unmigrated")) as pooler:
        connections = [await connect(pooler.url) for _ in range(4)]
        applied = await asyncio.gather(*map(migrate, connections))
        assert sorted(migration.version for some in applied for migration in some) == list(range(1, len(load()) + 1))
        for connection in connections:
            await connection.close()
    postgres.drop_database("unmigrated")


async def test_the_question_from_outside_is_answered_through_the_pooler(
    pooler: PrivatePooler, database: asyncpg.Connection
) -> None:
    assert await is_free(pooler.url, "somebody")
    busy = await connect(pooler.url, server_settings={"application_name": "somebody"})
    working = asyncio.create_task(busy.execute("SELECT pg_sleep(60)"))

    async def is_working() -> bool:
        statement = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        return bool(await database.fetchval(statement))

    await eventually(is_working)
    assert not await is_free(pooler.url, "somebody")
    assert await is_free(pooler.url, "somebody else")
    working.cancel()
    await asyncio.wait([working])
    busy.terminate()


async def test_the_doctor_says_that_there_is_a_pooler(house: House) -> None:
    environment = {
        **os.environ,
        "MQTT_URL": house.broker.url,
        "DATABASE_URL": house.database_url,
        "METRICS_PORT": str(house.metrics_port),
    }
    command = [sys.executable, "-m", "daemon", "check"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE)
    printed = (await process.communicate())[0].decode()
    lines = [line for line in printed.splitlines() if " database." in line]
    assert any("through a pooler" in line for line in lines), printed
    assert not [line for line in lines if line.startswith("failure")], printed


async def test_a_pooler_that_pauses_reloads_reconnects_and_dies_costs_no_reading(
    house: House, api: httpx2.AsyncClient, pooler: PrivatePooler, database_url: str
) -> None:
    posted = 0

    async def post() -> None:
        """One meter's readings by HTTP, each until it is taken."""
        nonlocal posted
        while True:
            body = {"meterId": "posted", "kwhConsumedAc": 1, "voltage": 230, "timestamp": 1_700_000_000 + 60 * posted}
            answer = await api.post("/v1/ingest", json=[body])
            if answer.status_code == 201:
                posted += 1
            else:
                assert answer.status_code == 503, answer.text
                await asyncio.sleep(0.1)

    async with AsyncExitStack() as stack:
        load = await stack.enter_async_context(Load(house.broker.port))
        posting = asyncio.create_task(post())
        stack.callback(posting.cancel)
        name = pooler.url.rpartition("/")[2]
        for harm in ("RELOAD", "PAUSE", "RESUME", "RECONNECT", f"KILL {name}", f"RESUME {name}"):
            await load.more(1000)
            await pooler.command(harm)
        for _ in range(3):
            await load.more(1000)
            await asyncio.to_thread(pooler.process.kill)
            await load.more(500)
            await asyncio.to_thread(pooler.start)
        taken = posted

        async def more_posted() -> bool:
            return posted > taken

        await eventually(more_posted)
        posting.cancel()
        await asyncio.wait([posting])
    connection = await asyncpg.connect(database_url)
    found = await connection.fetch("DELETE FROM meter_reading WHERE meter_id = 'posted' RETURNING ts")
    await connection.execute("DELETE FROM meter_status WHERE meter_id = 'posted'")
    await connection.close()
    assert posted <= len({row["ts"] for row in found}) == len(found) <= posted + 1  # one was under way at the end
    assert (await check(load, database_url)).complaints() == []
    assert house.books().unaccounted == 0
    assert "prepared statement" not in house.daemon.log.read_text()
