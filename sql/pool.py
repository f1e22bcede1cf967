"""Connections: a pool that needs no database to be opened, and a lease that never hands a bad connection back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import asyncpg

from sql.errors import is_read_only

Connection: TypeAlias = asyncpg.pool.PoolConnectionProxy
Pool: TypeAlias = asyncpg.Pool

CONNECT_TIMEOUT_S = 10.0
WORK_TIMEOUT_S = 30.0
"""How long one lease may last. A network that swallows packets must not hold a batch for ever."""


@asynccontextmanager
async def open_pool(database_url: str, application_name: str, connections_max: int) -> AsyncIterator[Pool]:
    """A pool for the time of the block. Connections are made when they are needed, so the database may be away."""
    pool = asyncpg.create_pool(
        database_url,
        min_size=0,
        max_size=connections_max,
        timeout=CONNECT_TIMEOUT_S,
        # The lease below leaves no state on a connection, so there is nothing to reset at a round trip's cost.
        reset=_keep,
        server_settings={
            "application_name": application_name,
            "timezone": "UTC",
            # A generic plan would look at every day's partition, a plan for the given times only at theirs.
            "plan_cache_mode": "force_custom_plan",
        },
    )
    await pool
    try:
        yield pool
    finally:
        # Everything that ran in the pool has ended here; a server that does not answer must not hold up the exit.
        try:
            async with asyncio.timeout(1):
                await pool.close()
        except TimeoutError:
            pool.terminate()


@asynccontextmanager
async def lease(pool: Pool, timeout_s: float = WORK_TIMEOUT_S) -> AsyncIterator[Connection]:
    """A connection for the time of the block, in which the block has `timeout_s`.

    A connection is thrown away when it was cut off in the middle of something (a time-out, a cancellation, a network
    error), since its state is unknown, and when its server has become read-only. Raises TimeoutError, OSError,
    asyncpg.InterfaceError or asyncpg.PostgresError; `sql.errors.judge` says what each asks for.
    """
    connection = await pool.acquire(timeout=CONNECT_TIMEOUT_S)
    try:
        async with asyncio.timeout(timeout_s):
            yield connection
    except asyncpg.InternalClientError as error:
        # What asyncpg says of a connection whose server has said good-bye and not yet hung up.
        connection.terminate()
        raise asyncpg.InterfaceError(f"the connection cannot be used any more: {error}") from error
    except BaseException as error:
        if not isinstance(error, asyncpg.PostgresError) or is_read_only(error):
            connection.terminate()
        raise
    finally:
        await pool.release(connection)


async def _keep(connection: Connection) -> None:
    """Reset nothing."""
