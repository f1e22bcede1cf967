"""The database as the routes see it: there at once, or 503 at once.

Rule: one watcher asks the database twice a second on a connection of its own, and it alone decides whether the database
is there. While it is away no request tries; requests that are under way when it goes are cut off. So nobody finds out
by waiting, whether the server refuses connections or swallows them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import structlog

from api.errors import unavailable
from sql.errors import SchemaError, Verdict, judge, sqlstate
from sql.migrate import verify
from sql.pool import WORK_TIMEOUT_S, Connection, Pool, connect, lease, open_pool

log = structlog.get_logger("fleetwatt.api.database")

CONNECTIONS_MAX = 10
LONG_MAX = 5
"""Of these, how many may be held for long. The others stay with those who are quick."""
ACQUIRE_TIMEOUT_S = 2.0
"""How long a request waits for its turn. The watcher is faster where the database is away."""
PROBE_INTERVAL_S = 0.5
PROBE_TIMEOUT_S = 0.8

AWAY = "The database is away; nothing was lost, send the request again"
MANY = "Too many exports are under way, send the request again"
BUSY = "The database is too busy at the moment, send the request again"
SLOW = "The database took too long; ask for less, or send the request again"

_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, EOFError)


class Database:
    """A pool behind the watcher's verdict."""

    def __init__(self, url: str, pool: Pool) -> None:
        self._url = url
        self._pool = pool
        self._under_way: set[asyncio.Timeout] = set()
        self._long = 0
        self._probe_now = asyncio.Event()
        self._probed = asyncio.Event()
        self._asked_on: asyncpg.Connection | None = None
        """The watcher's own, from its first moment to its end."""
        self.fault: str | None = "the database was not asked yet"
        """Why the database is away; None while it is there."""
        self.schema_fault: str | None = None
        """What is wrong with the schema, or None."""

    @property
    def connections(self) -> dict[str, int]:
        """How many connections there are, by what they do."""
        idle = self._pool.get_idle_size()
        return {"idle": idle, "used": self._pool.get_size() - idle}

    @asynccontextmanager
    async def connection(self, timeout_s: float = WORK_TIMEOUT_S) -> AsyncIterator[Connection]:
        """A connection for the time of the block; raises ProblemError 503 where the database is not to be had.

        Errors that are the statement's own pass through.
        """
        if self.fault:
            raise unavailable(AWAY)
        acquired = False
        try:
            async with asyncio.timeout(ACQUIRE_TIMEOUT_S) as deadline:
                self._under_way.add(deadline)
                try:
                    async with lease(self._pool, timeout_s) as connection:
                        acquired = True
                        if not self.fault:
                            deadline.reschedule(None)
                        yield connection
                finally:
                    self._under_way.discard(deadline)
        except _ERRORS as error:
            if judge(error) is not Verdict.PASSES:
                raise
            self._probe_now.set()
            log.warning("request without a database", error=str(error) or type(error).__name__, acquired=acquired)
            raise unavailable(self._why(error, acquired)) from error

    @asynccontextmanager
    async def long_connection(self, timeout_s: float) -> AsyncIterator[Connection]:
        """A connection for what takes as long as its client likes; raises ProblemError 503 where there are many."""
        if self._long >= LONG_MAX:
            raise unavailable(MANY)
        self._long += 1
        try:
            async with self.connection(timeout_s) as connection:
                yield connection
        finally:
            self._long -= 1

    async def watch(self) -> None:
        """Ask for ever."""
        try:
            while True:
                await self._probe()
                self._probed.set()
                self._probe_now.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_INTERVAL_S):
                        await self._probe_now.wait()
        finally:
            self._hang_up()

    async def asked_once(self) -> None:
        """Wait for the first verdict."""
        await self._probed.wait()

    async def _probe(self) -> None:
        """Ask on the connection of the time before, or a new one."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                if self._asked_on is None:
                    self._asked_on = await connect(
                        self._url, timeout=PROBE_TIMEOUT_S, server_settings={"application_name": "fleetwatt-api-watch"}
                    )
                    await self._verify(self._asked_on)
                elif self.schema_fault:
                    await self._verify(self._asked_on)
                else:
                    await self._asked_on.fetchval("SELECT 1")
        except Exception as error:  # whatever it is, the database cannot be used
            self._hang_up()
            self._went(error)
        else:
            self._came()

    def _hang_up(self) -> None:
        if self._asked_on is not None:
            self._asked_on.terminate()
            self._asked_on = None

    async def _verify(self, connection: asyncpg.Connection) -> None:
        try:
            await verify(connection)
        except SchemaError as error:
            if str(error) != self.schema_fault:
                log.error("the schema is not the one this program was made for", error=str(error))
            self.schema_fault = str(error)
        else:
            self.schema_fault = None

    def _why(self, error: Exception, acquired: bool) -> str:
        if self.fault or not isinstance(error, TimeoutError):
            return AWAY
        return SLOW if acquired else BUSY

    def _went(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if self.fault is None or not self._probed.is_set():
            log.warning("database away, requests are answered with 503", error=text, sqlstate=sqlstate(error))
        self.fault = f"the database does not answer: {text}"
        now_s = asyncio.get_running_loop().time()
        for deadline in list(self._under_way):
            if not deadline.expired():
                deadline.reschedule(now_s)

    def _came(self) -> None:
        if self.fault is not None and self._probed.is_set():
            log.info("database back")
        self.fault = None


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    """The database for the time of the block, watched. It may be away."""
    async with open_pool(url, "fleetwatt-api", CONNECTIONS_MAX) as pool:
        database = Database(url, pool)
        watcher = asyncio.create_task(database.watch(), name="database watcher")
        try:
            await database.asked_once()
            yield database
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])
