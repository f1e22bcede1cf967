"""The pool and its lease: it opens with no database, and never hands a bad connection back."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import asyncpg
import pytest

from dev.house import eventually
from dev.network import Network
from dev.processes import free_port
from sql import pool as pool_module
from sql.errors import Verdict, judge
from sql.pool import (
    SESSION_SETTINGS,
    TRANSACTION_LIMITS,
    Connection,
    Pool,
    connect,
    has_own_session,
    lease,
    open_pool,
    transaction,
)

INSERT = "INSERT INTO meter_status VALUES ('m1', now(), 1, 230, now())"


@pytest.fixture
async def one(database_url: str) -> AsyncIterator[Pool]:
    """A pool of one connection, so that a new server process means a new connection."""
    async with open_pool(database_url, "test_pool", 1) as pool:
        yield pool


async def server_pid(pool: Pool) -> int:
    async with lease(pool) as connection:
        return int(connection.get_server_pid())


async def answers(pool: Pool) -> bool:
    try:
        async with lease(pool) as connection:
            return bool(await connection.fetchval("SELECT 1") == 1)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        return False


async def test_a_pool_opens_with_no_database_and_closes_again() -> None:
    async with open_pool(f"postgresql://nobody@127.0.0.1:{free_port()}/none", "test", 2) as pool:
        for _ in range(3):
            with pytest.raises(OSError) as raised:  # noqa: PT011 - which one depends on the platform
                async with lease(pool):
                    pass
            assert judge(raised.value) is Verdict.PASSES


async def test_a_connection_carries_its_name_and_speaks_utc(one: Pool) -> None:
    async with lease(one) as connection:
        assert await connection.fetchval("SHOW application_name") == "test_pool"
        assert await connection.fetchval("SHOW timezone") == "UTC"


async def test_the_server_ends_what_nobody_is_left_to_end(one: Pool) -> None:
    """A transaction whose connection died would keep its locks for hours."""
    async with lease(one) as connection:
        limits = [await connection.fetchval("SELECT current_setting($1)", name) for name in SESSION_SETTINGS]
    assert limits == list(SESSION_SETTINGS.values())


async def test_a_transaction_has_its_limits_whatever_the_session_has(database: asyncpg.Connection) -> None:
    await database.execute("SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0")
    async with transaction(database):
        limits = [await database.fetchval("SELECT current_setting($1)", name) for name in TRANSACTION_LIMITS]
    assert limits == list(TRANSACTION_LIMITS.values())
    assert await database.fetchval("SHOW statement_timeout") == "0"


async def test_a_connection_to_the_server_itself_keeps_its_statements(database_url: str) -> None:
    connection = await connect(database_url)
    assert await has_own_session(connection)
    await connection.fetchval("SELECT $1::integer", 1)
    assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements") == 2
    await connection.close()


async def test_limits_that_a_role_was_given_are_not_those_of_the_pool(
    one: Pool, database: asyncpg.Connection, database_url: str
) -> None:
    name = urlsplit(database_url).path.removeprefix("/")
    await database.execute(f"ALTER DATABASE {name} SET statement_timeout = '50ms'")
    async with lease(one) as connection:
        await connection.execute("SELECT pg_sleep(0.2)")


async def test_a_good_connection_is_used_again(one: Pool) -> None:
    assert await server_pid(one) == await server_pid(one)


async def repeat_a_key(connection: Connection) -> None:
    await connection.execute(INSERT)
    await connection.execute(INSERT)


async def divide_by_zero_in_a_transaction(connection: Connection) -> None:
    async with connection.transaction():
        await connection.execute("SELECT 1 / 0")


@pytest.mark.parametrize("work", [repeat_a_key, divide_by_zero_in_a_transaction])
async def test_a_row_s_fault_keeps_the_connection(one: Pool, work: Callable[[Connection], Awaitable[None]]) -> None:
    before = await server_pid(one)
    with pytest.raises(asyncpg.PostgresError):
        async with lease(one) as connection:
            await work(connection)
    assert await server_pid(one) == before
    async with lease(one) as connection:
        assert not connection.is_in_transaction()


async def take_too_long(pool: Pool) -> None:
    async with lease(pool, timeout_s=0.05) as connection:
        await connection.execute("SELECT pg_sleep(30)")


async def be_cancelled(pool: Pool) -> None:
    async def work() -> None:
        async with lease(pool) as connection:
            begun.set()
            await connection.execute("SELECT pg_sleep(30)")

    begun = asyncio.Event()
    task = asyncio.create_task(work())
    await begun.wait()
    await asyncio.sleep(0)
    task.cancel()
    await task


async def write_where_that_is_forbidden(pool: Pool) -> None:
    async with lease(pool) as connection:
        await connection.execute("SET default_transaction_read_only = on")  # as a demoted server would have it
        await connection.execute(INSERT)


async def run_out_of_the_time_that_the_session_was_given(pool: Pool) -> None:
    async with lease(pool) as connection:
        await connection.execute("SET statement_timeout = '50ms'")  # as a role's defaults would have it
        await connection.execute("SELECT pg_sleep(30)")


async def read_a_missing_table(pool: Pool) -> None:
    async with lease(pool) as connection:
        await connection.execute("SET search_path = nowhere")
        await connection.execute("TABLE meter_reading")


async def stumble_over_a_bug(pool: Pool) -> None:
    async with lease(pool):
        raise ValueError


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (take_too_long, TimeoutError),
        (be_cancelled, asyncio.CancelledError),
        (write_where_that_is_forbidden, asyncpg.ReadOnlySQLTransactionError),
        (run_out_of_the_time_that_the_session_was_given, asyncpg.QueryCanceledError),
        (read_a_missing_table, asyncpg.UndefinedTableError),
        (stumble_over_a_bug, ValueError),
    ],
)
async def test_a_connection_that_may_not_get_better_is_thrown_away(
    one: Pool, work: Callable[[Pool], Awaitable[None]], error: type[BaseException]
) -> None:
    before = await server_pid(one)
    with pytest.raises(error):
        await work(one)
    async with lease(one) as connection:
        assert connection.get_server_pid() != before
        await connection.execute(INSERT)


async def test_what_the_server_said_when_it_ended_the_session_is_what_the_caller_learns(one: Pool) -> None:
    async def idle_in_a_transaction() -> None:
        async with lease(one) as connection, connection.transaction():
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '10ms'")
            await asyncio.sleep(0.3)
            await connection.execute("SELECT 1")

    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)) as raised:
        await idle_in_a_transaction()
    assert judge(raised.value) is Verdict.PASSES
    assert "released back to the pool" not in str(raised.value)
    assert await server_pid(one)


async def test_a_time_out_is_no_fault_of_the_next_one(one: Pool) -> None:
    for _ in range(5):
        with pytest.raises(TimeoutError):
            await take_too_long(one)
        assert await answers(one)


async def test_waiting_for_a_free_connection_ends(one: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lease(one):
        monkeypatch.setattr(pool_module, "CONNECT_TIMEOUT_S", 0.05)  # not before: a first connection may take longer
        with pytest.raises(TimeoutError):
            async with lease(one):
                pass
    assert await answers(one)


async def test_the_pool_works_again_after_its_connections_were_killed(pool: Pool, database: asyncpg.Connection) -> None:
    leases = [pool.acquire() for _ in range(4)]
    connections = await asyncio.gather(*leases)
    for connection in connections:
        await pool.release(connection)

    killed = await database.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert len(killed) == 4

    await eventually(lambda: answers(pool))
    assert all(await asyncio.gather(*(answers(pool) for _ in range(8))))


async def test_a_connection_whose_server_has_gone_without_hanging_up_is_thrown_away(
    database: asyncpg.Connection, database_url: str
) -> None:
    async def gone() -> bool:
        return network.hang_ups_hidden == 1

    with Network(database_url) as network:
        async with open_pool(network.url, "test", 1) as pool:
            network.hide_hang_ups = True
            before = await server_pid(pool)
            await database.execute("SELECT pg_terminate_backend($1)", before)
            await eventually(gone)
            # What the server said in parting may come after the question, which then nobody answers.
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)) as raised:
                async with lease(pool, timeout_s=2) as connection:
                    await connection.execute("SELECT 1")
            assert judge(raised.value) is Verdict.PASSES
            assert await server_pid(pool) != before


async def test_a_server_that_does_not_answer_holds_up_neither_the_lease_nor_the_end(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "CONNECT_TIMEOUT_S", 60.0)  # how long it could be waited for in the pool
    stalled = 0
    try:
        async with asyncio.timeout(30), open_pool(database_url, "test", 1) as pool:
            stalled = await server_pid(pool)
            os.kill(stalled, signal.SIGSTOP)
            with pytest.raises(TimeoutError):
                async with lease(pool, timeout_s=0.1) as connection:
                    await connection.fetchval("SELECT 1")
            assert await answers(pool)

            os.kill(stalled, signal.SIGCONT)
            stalled = await server_pid(pool)
            os.kill(stalled, signal.SIGSTOP)
    finally:
        os.kill(stalled, signal.SIGCONT)
