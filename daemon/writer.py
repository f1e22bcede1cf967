"""The writer: one batch at a time to the database, or to the spool; and then, and only then, the acknowledgement.

Rule: a batch waits for the database for `spool_after_s`, whatever keeps it (errors, or silence). Then it goes to the
spool as a whole, and those behind it go there at once, until something was stored again. Two things keep it waiting
for as long as it takes, with the broker holding what comes behind it: a spool that is off, full or broken, and an error
that is ours to mend (`daemon.settle` has the table), since that should be seen and not be covered up.
"""

import asyncio
import time
from collections.abc import Callable

import structlog

from daemon.accounts import Accounts, Settlement
from daemon.batch import Batch, Batches
from daemon.outage import Outage
from daemon.settle import Settler
from daemon.spool import Spool, SpoolError

log = structlog.get_logger("fleetwatt.writer")

REMIND_INTERVAL_S = 30.0
"""How often a spool that takes nothing is mentioned again."""


class Writer:
    """Takes batches as they fall due and settles them."""

    def __init__(
        self,
        batches: Batches,
        settler: Settler,
        outage: Outage,
        accounts: Accounts,
        committed: Callable[[Batch, float], None],
        settled: Callable[[], None],
        spool: Spool | None,
        spool_after_s: float,
    ) -> None:
        """`committed` gets each batch that was stored, and when its writing began (monotonic seconds).

        `settled` is called after each batch, wherever it went: there is room for more.
        """
        self._batches = batches
        self._settler = settler
        self._outage = outage
        self._accounts = accounts
        self._committed = committed
        self._settled = settled
        self._spool = spool
        self._spool_after_s = spool_after_s
        self._complained_at_s = float("-inf")

    async def run(self) -> None:
        """Write until the batches are closed and the last one is settled."""
        while batch := await self._batches.next():
            await self._write(batch)

    async def _write(self, batch: Batch) -> None:
        started_at_s = time.monotonic()
        settlement = await self._settle(batch)
        if settlement is not None:
            self._accounts.settle(batch.readings, settlement)
            self._committed(batch, started_at_s)
            batch.session.acknowledge(batch.packet_ids)
        self._settled()

    async def _settle(self, batch: Batch) -> Settlement | None:
        """What became of a batch in the database; None where it is in the spool, and acknowledged."""
        if self._outage.is_lasting and not self._outage.is_ours and await self._spooled(batch):
            return None
        storing = asyncio.create_task(self._settler.settle(batch.contents), name="store a batch")
        try:
            while not (await asyncio.wait([storing], timeout=self._patience_s))[0]:
                if not self._outage.is_ours and await self._spooled(batch):
                    return None
            return storing.result()
        finally:
            # Where it is cut off in the middle of a commit, the table knows the rows when they come again.
            storing.cancel()
            await asyncio.wait([storing])

    @property
    def _patience_s(self) -> float | None:
        return self._spool_after_s if self._spool is not None else None

    async def _spooled(self, batch: Batch) -> bool:
        """Put a batch into the spool and acknowledge it; False where the spool does not take it."""
        if self._spool is None:
            return False
        putting = asyncio.create_task(self._spool.put(batch), name="spool a batch")
        try:
            await asyncio.shield(putting)
        except SpoolError as error:
            self._complain(error)
            return False
        except asyncio.CancelledError:
            # The end of the daemon does not stop the disk. What is in the spool and not acknowledged would come twice.
            await asyncio.wait([putting])
            if putting.exception() is None:
                self._keep(batch)
            raise
        self._keep(batch)
        return True

    def _keep(self, batch: Batch) -> None:
        self._outage.spooled()
        self._accounts.spool(batch.readings)
        batch.session.acknowledge(batch.packet_ids)

    def _complain(self, error: SpoolError) -> None:
        if time.monotonic() - self._complained_at_s >= REMIND_INTERVAL_S:
            self._complained_at_s = time.monotonic()
            log.error("the spool takes nothing more, the broker holds the rest", error=str(error))
