"""Connections: a pool that needs no database to be opened, and a lease that never hands a bad connection back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

import asyncpg

from sql import tls
from sql.errors import Verdict, judge

Connection: TypeAlias = asyncpg.pool.PoolConnectionProxy
Pool: TypeAlias = asyncpg.Pool

CONNECT_TIMEOUT_S = 10.0
WORK_TIMEOUT_S = 30.0
"""How long one lease may last. A network that swallows packets must not hold a batch for ever."""

LIMITS = {
    "statement_timeout": f"{WORK_TIMEOUT_S:g}s",
    # Nobody here is idle within a transaction on purpose. One whose connection died in the middle would keep its locks,
    # and everybody who wants the same rows waiting, until the server's TCP gives up after two hours.
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
"""What the server ends by itself, since nobody may be left to tell it."""


class ConnectError(ConnectionError):
    """The connection is not as DATABASE_URL asks for it."""


async def connect(database_url: str, **named: Any) -> asyncpg.Connection:
    """`asyncpg.connect`, with errors of TLS and of the files for it in words that name the setting."""
    try:
        return await asyncpg.connect(database_url, **named)
    except (FileNotFoundError, PermissionError) as error:  # which do not name the file
        raise ConnectError(
            f"a file of DATABASE_URL cannot be read ({error}): look at sslrootcert, sslcert and sslkey, "
            "or at the server's socket where the host is a folder"
        ) from error
    except (OSError, asyncpg.PostgresConnectionError) as error:
        if text := tls.explain(error, tls.DATABASE):
            raise ConnectError(text) from error
        if isinstance(error, asyncpg.ConnectionDoesNotExistError) and _asks_for_tls(database_url):
            # The server's alert is not always seen before the end of the connection.
            raise ConnectError(
                f"the database ended the connection before it was made ({error}): if it wants a client certificate, "
                "look at sslcert and sslkey in DATABASE_URL"
            ) from error
        raise


def _asks_for_tls(database_url: str) -> bool:
    modes = parse_qs(urlsplit(database_url).query).get("sslmode", [])
    return any(mode == "require" or mode.startswith("verify") for mode in modes)


@asynccontextmanager
async def open_pool(database_url: str, application_name: str, connections_max: int) -> AsyncIterator[Pool]:
    """A pool for the time of the block. Connections are made when they are needed, so the database may be away."""
    pool = asyncpg.create_pool(
        database_url,
        min_size=0,
        max_size=connections_max,
        timeout=CONNECT_TIMEOUT_S,
        connect=connect,
        # The lease below leaves no state on a connection, so there is nothing to reset at a round trip's cost.
        reset=_keep,
        server_settings={
            "application_name": application_name,
            "timezone": "UTC",
            **LIMITS,
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

    A connection is given back after an error that is a row's fault. After any other it is thrown away: it was cut off
    in the middle of something, or its server has become read-only, or its session was given limits at its start under
    which nothing works. Raises TimeoutError, OSError, asyncpg.InterfaceError or asyncpg.PostgresError;
    `sql.errors.judge` says what each asks for.
    """
    connection = await pool.acquire(timeout=CONNECT_TIMEOUT_S)
    try:
        async with asyncio.timeout(timeout_s):
            yield connection
    except asyncpg.InternalClientError as error:
        # What asyncpg says of a connection whose server has said good-bye and not yet hung up.
        _throw_away(connection)
        raise asyncpg.InterfaceError(f"the connection cannot be used any more: {error}") from error
    except BaseException as error:
        if not isinstance(error, asyncpg.PostgresError) or judge(error) is not Verdict.ROW:
            _throw_away(connection)
        raise
    finally:
        await pool.release(connection)


def _throw_away(connection: Connection) -> None:
    with contextlib.suppress(asyncpg.InterfaceError):  # the server ended it, and the pool has forgotten it already
        connection.terminate()


async def _keep(connection: Connection) -> None:
    """Reset nothing."""
