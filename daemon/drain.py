"""The drain: from the spool to the database, oldest first, beside the readings that come in.

It is also what finds out that a database which stayed away is back: while readings go to the spool, nobody else asks.
"""

import asyncio

import structlog

from daemon.accounts import Accounts
from daemon.backoff import Backoff
from daemon.outage import Outage
from daemon.settle import FIRST_RETRY_S, LONGEST_RETRY_S, Settler
from daemon.spool import Spool, Spooled, SpoolError
from sql.pool import Pool, lease

log = structlog.get_logger("fleetwatt.spool")

KNOCK_TIMEOUT_S = 3.0
"""A database that does not answer so simple a question in this time is not back."""


class Drain:
    """Empties the spool whenever there is something in it."""

    def __init__(
        self, spool: Spool, settler: Settler, outage: Outage, pool: Pool, accounts: Accounts, readings_max: int
    ) -> None:
        """`readings_max` is how many readings are stored at a time."""
        self._spool = spool
        self._settler = settler
        self._outage = outage
        self._pool = pool
        self._accounts = accounts
        self._readings_max = readings_max

    async def run(self) -> None:
        """Drain for ever."""
        backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        while True:
            await self._spool.wait()
            try:
                spooled = await self._spool.oldest(self._readings_max)
            except SpoolError as error:
                log.error("the spool cannot be read, trying again", error=str(error))
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            if spooled is not None:
                await self._store(spooled)

    async def _store(self, spooled: Spooled) -> None:
        await self._database_back()
        settlement = await self._settler.settle(spooled.contents)
        self._accounts.settle_spooled(spooled.readings, settlement)
        try:
            await self._spool.remove(spooled)
        except SpoolError as error:
            # It is not taken again by this process; after a start it would be, and the table would know it.
            log.error("the spool keeps what is stored already", error=str(error))

    async def _database_back(self) -> None:
        """Wait until a database that stayed away answers: a small question finds out sooner than a large batch."""
        backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        while self._outage.is_lasting:
            try:
                async with lease(self._pool, KNOCK_TIMEOUT_S) as connection:  # connecting has a time of its own
                    await connection.fetchval("SELECT 1")
                return
            except Exception as error:
                self._outage.failed(error, self)
                await asyncio.sleep(backoff.next_s())
