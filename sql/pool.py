"""Connections: a pool that needs no database to be opened, and a lease that never hands a bad connection back.

Rule: nothing counts on a session of its own. A pooler in between (pgbouncer in transaction mode) gives each transaction
to whichever session is free, so

| what | on a session of our own | behind a pooler |
| --- | --- | --- |
| `connect` | keeps statements prepared | prepares each anew and without a name, which another may have taken there |
| the limits below | are set once | are not set: whose session is it? |
| `transaction` | sets those that protect others from us | sets the same, for as long as it lasts |
| locks | belong to a transaction, never to a session | the same |

Whether there is a pooler shows by the process id that the server told at the start, which a pooler makes up.
"""

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

STATEMENTS_PREPARED_MAX = 100

TRANSACTION_LIMITS = {
    "statement_timeout": f"{WORK_TIMEOUT_S:g}s",
    # Nobody here is idle within a transaction on purpose. One whose connection died in the middle would keep its locks,
    # and everybody who wants the same rows waiting, until the server's TCP gives up after two hours.
    "idle_in_transaction_session_timeout": "10s",
}
"""What the server ends by itself, since nobody may be left to tell it."""
SESSION_SETTINGS = {
    **TRANSACTION_LIMITS,
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    # A generic plan would look at every day's partition, a plan for the given times only at theirs.
    "plan_cache_mode": "force_custom_plan",
    # What looks dear to the planner takes less time here than compiling it does.
    "jit": "off",
}
"""No parameters of the start, since a pooler refuses a connection that asks for one it does not know."""

_SET_LIMITS = "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in TRANSACTION_LIMITS.items())
_SET_SETTINGS = "SELECT " + ", ".join(
    f"set_config('{name}', '{value}', false)" for name, value in SESSION_SETTINGS.items()
)


class ConnectError(ConnectionError):
    """The connection is not as DATABASE_URL asks for it."""


async def connect(database_url: str, **named: Any) -> asyncpg.Connection:
    """`asyncpg.connect` for a server or a pooler; `timeout` is for all of it.

    Errors of TLS and of the files for it are in words that name the setting.
    """
    return await _connect(database_url, "SELECT 1", **named)


async def _connect_for_pool(database_url: str, **named: Any) -> asyncpg.Connection:
    return await _connect(database_url, _SET_SETTINGS, **named)


async def _connect(
    database_url: str,
    first_select: str,
    timeout: float = CONNECT_TIMEOUT_S,  # noqa: ASYNC109 - asyncpg's word, and its pool gives it
    **named: Any,
) -> asyncpg.Connection:
    """Connect, and do `first_select` where the session is our own."""
    async with asyncio.timeout(timeout):
        connection = await _connect_once(database_url, statement_cache_size=STATEMENTS_PREPARED_MAX, **named)
        is_own = False
        try:
            is_own = await _if_own_session(connection, first_select)
        finally:
            if not is_own:
                connection.terminate()
        if is_own:
            return connection
        return await _connect_once(database_url, statement_cache_size=0, **named)


async def has_own_session(connection: asyncpg.Connection) -> bool:
    """Whether nobody hands the connection's transactions to sessions that others use as well."""
    return await _if_own_session(connection, "SELECT 1")


async def _if_own_session(connection: asyncpg.Connection, select: str) -> bool:
    """Do `select`, of one row, unless there is a pooler. The simple protocol leaves no statement on any session."""
    status = await connection.execute(f"{select} WHERE pg_backend_pid() = {connection.get_server_pid()}")
    return bool(status == "SELECT 1")


async def _connect_once(database_url: str, **named: Any) -> asyncpg.Connection:
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
        connect=_connect_for_pool,
        # The lease below leaves no state on a connection, so there is nothing to reset at a round trip's cost.
        reset=_keep,
        # Poolers know these two, and set them on whichever session they choose.
        server_settings={"application_name": application_name, "timezone": "UTC"},
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


@asynccontextmanager
async def transaction(connection: Connection, **named: Any) -> AsyncIterator[None]:
    """`connection.transaction` with the limits, on whichever session it runs."""
    async with connection.transaction(**named):
        await connection.execute(_SET_LIMITS)
        yield


def _throw_away(connection: Connection) -> None:
    with contextlib.suppress(asyncpg.InterfaceError):  # the server ended it, and the pool has forgotten it already
        connection.terminate()


async def _keep(connection: Connection) -> None:
    """Reset nothing."""
