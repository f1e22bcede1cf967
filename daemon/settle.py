"""From rows and rejections to the database, for as long as it takes.

Rule: which error does what.

| what happened | what is done |
| --- | --- |
| COPY worked | the rows count as stored |
| COPY failed, or the outcome of its commit is unknown | the same rows go the slow way (`sql.store.insert`) |
| the slow way finds a row repeated or contradicted | counts a duplicate, or keeps a rejection `conflict` |
| an error that is the row's fault | halves the rows until it stands alone: a rejection `refused_by_database` |
| an error that passes (`sql.errors`) | keeps everything, waits with jitter, tries again, for ever |
| an error of ours, or one that nobody classified | the same, loudly: the flow stands still until somebody mends it |

The kinds are written at once, each in its own transaction and on its own connection. The verdict on a COPY's own error
is not asked for: a distributed database reports a repeated key there under another code than on the slow way.

Whoever is cut off in the middle may settle the same rows again, later or in another process: a row that is there with
its own time of receipt counts as stored, and a rejection that is there is not kept twice.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from daemon.accounts import Settlement
from daemon.backoff import Backoff
from daemon.batch import Contents, count_reasons
from daemon.metrics import Metrics
from daemon.outage import Outage
from daemon.readings import Reason, topic_of
from sql import rejections, store
from sql.errors import Verdict, judge, sqlstate
from sql.flood import Flood
from sql.partitions import Days
from sql.pool import Connection, Pool, lease
from sql.rejections import Rejection
from sql.store import Inserted, Kind, Row

T = TypeVar("T")

FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 3.0


class Settler:
    """Takes readings to the database and says what became of them. One at a time; each has its own connections."""

    def __init__(self, pool: Pool, outage: Outage, flood: Flood, metrics: Metrics) -> None:
        self._pool = pool
        self._outage = outage
        self._flood = flood
        self._metrics = metrics
        self._days = Days()

    async def settle(self, contents: Contents) -> Settlement:
        """Store the rows, keep the rejections, and return what became of each reading once all is committed."""
        settlement = Settlement()
        found: list[Rejection] = []
        async with asyncio.TaskGroup() as kinds:
            for kind, rows in contents.rows.items():
                kinds.create_task(self._store(kind, rows, settlement, found), name=f"store {kind.name} readings")
        kept = contents.rejections + self._flood.keep(found)
        if kept:
            await self._patiently(lambda connection: rejections.insert(connection, kept), "rejections")
        settlement.rejected = contents.not_kept + count_reasons(contents.rejections) + count_reasons(found)
        if contents.rows or kept:  # of a flood there may be nothing to store, which says nothing of the database
            self._outage.stored()  # not before: one kind may be stored while the other still fails
        return settlement

    async def _store(self, kind: Kind, rows: list[Row], settlement: Settlement, found: list[Rejection]) -> None:
        for some in store.slices(rows):
            await self._store_slice(kind, some, settlement, found)

    async def _store_slice(self, kind: Kind, rows: list[Row], settlement: Settlement, found: list[Rejection]) -> None:
        batch = store.sort(rows)
        settlement.duplicate[kind.name] += batch.duplicates
        found += [_conflict(kind, row) for row in batch.conflicts]
        try:
            async with lease(self._pool) as connection:
                await store.copy(connection, kind, batch, self._days)
        except Exception as error:  # the table above says why any will do
            self._metrics.slow_batch(kind.name, sqlstate(error))
            if judge(error) is Verdict.PASSES:
                self._outage.failed(error, (self, kind.name))
                await asyncio.sleep(Backoff(FIRST_RETRY_S, FIRST_RETRY_S).next_s())
            await self._insert(kind, batch.rows, settlement, found)
        else:
            settlement.stored[kind.name] += len(batch.rows)

    async def _insert(self, kind: Kind, rows: list[Row], settlement: Settlement, found: list[Rejection]) -> None:
        def attempt(some: list[Row]) -> Awaitable[Inserted]:
            return self._patiently(
                lambda connection: store.insert(connection, kind, some, self._days), kind.name, give_back=Verdict.ROW
            )

        inserted, refused = await store.isolate(rows, attempt)
        settlement.stored[kind.name] += inserted.stored
        settlement.duplicate[kind.name] += inserted.duplicates
        found += [_conflict(kind, row) for row in inserted.conflicts]
        found += [_refused(kind, row, error) for row, error in refused]

    async def _patiently(
        self, work: Callable[[Connection], Awaitable[T]], name: str, give_back: Verdict | None = None
    ) -> T:
        """Do `work` on a connection until it succeeds. Raises only errors with the verdict `give_back`."""
        backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        while True:
            try:
                async with lease(self._pool) as connection:
                    done = await work(connection)
            except Exception as error:
                self._metrics.database_error(sqlstate(error))
                if judge(error) is give_back:
                    raise
                self._outage.failed(error, (self, name))
                await asyncio.sleep(backoff.next_s())
            else:
                self._outage.succeeded((self, name))
                return done


def _conflict(kind: Kind, row: Row) -> Rejection:
    detail = f"{row[0]} has another reading at {row[1].isoformat()}, with other values; the first one stays"
    return _rejection(kind, row, "conflict", detail)


def _refused(kind: Kind, row: Row, error: Exception) -> Rejection:
    return _rejection(kind, row, "refused_by_database", f"{sqlstate(error)}: {error}")


def _rejection(kind: Kind, row: Row, reason: Reason, detail: str) -> Rejection:
    *_, received_at, payload = row
    return Rejection(received_at, topic_of(kind, row[0]), reason, detail, payload)
