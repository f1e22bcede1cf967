"""The writer: one batch at a time into the database, and the acknowledgement after the commit.

Rule: which error does what.

| what happened | what the writer does |
| --- | --- |
| COPY worked | acknowledges |
| COPY failed, or the outcome of its commit is unknown | the same rows go the slow way (`sql.store.insert`) |
| the slow way finds a row repeated or contradicted | counts a duplicate, or keeps a rejection `conflict` |
| an error that is the row's fault | halves the rows until it stands alone: a rejection `refused_by_database` |
| an error that passes (`sql.errors`) | keeps the batch, waits with jitter, tries again, for ever |
| an error of ours, or one that nobody classified | the same, loudly: the flow stands still until somebody mends it |

The kinds of a batch are written at once, each in its own transaction and on its own connection. The verdict on a COPY's
own error is not asked for: a distributed database reports a repeated key there under another code than on the slow way.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from daemon.accounts import Accounts, Settlement
from daemon.backoff import Backoff
from daemon.batch import Batch, Batches
from daemon.metrics import Metrics
from daemon.readings import Reason, topic_of
from sql import rejections, store
from sql.errors import Verdict, judge, sqlstate
from sql.partitions import Days
from sql.pool import Connection, Pool, lease
from sql.rejections import Rejection
from sql.store import Inserted, Kind, Row

T = TypeVar("T")

log = structlog.get_logger("fleetwatt.writer")

FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 5.0
REMIND_INTERVAL_S = 30.0
"""How often an outage that goes on is mentioned again."""


class Writer:
    """Takes batches as they fall due and settles them."""

    def __init__(
        self, pool: Pool, batches: Batches, accounts: Accounts, metrics: Metrics, settled: Callable[[], None]
    ) -> None:
        """`settled` is called after each batch: there is room for more."""
        self._pool = pool
        self._batches = batches
        self._accounts = accounts
        self._metrics = metrics
        self._settled = settled
        self._days = Days()
        self._outage = _Outage()
        self.last_commit_at_s = 0.0

    async def run(self) -> None:
        """Write until the batches are closed and the last one is settled."""
        while batch := await self._batches.next():
            await self._write(batch)

    async def _write(self, batch: Batch) -> None:
        started_at_s = time.monotonic()
        settlement = Settlement(rejections=batch.rejections)
        async with asyncio.TaskGroup() as kinds:
            for kind, rows in batch.rows.items():
                kinds.create_task(self._store(kind, rows, settlement), name=f"store {kind.name} readings")
        if settlement.rejections:
            await self._patiently(lambda connection: rejections.insert(connection, settlement.rejections))
        self._outage.over()  # not before: one kind may be stored while the other still fails
        self.last_commit_at_s = time.monotonic()
        self._accounts.settle(batch.readings, settlement)
        batch.session.acknowledge(batch.packet_ids)
        self._metrics.batch_settled(batch.readings, batch.opened_at_s, started_at_s, self.last_commit_at_s)
        self._settled()

    async def _store(self, kind: Kind, rows: list[Row], settlement: Settlement) -> None:
        batch = store.sort(rows)
        settlement.duplicate[kind.name] += batch.duplicates
        settlement.rejections += [_conflict(kind, row) for row in batch.conflicts]
        try:
            async with lease(self._pool) as connection:
                await store.copy(connection, kind, batch, self._days)
        except Exception as error:  # the table above says why any will do
            self._metrics.slow_batch(kind.name, sqlstate(error))
            if judge(error) is Verdict.PASSES:
                await self._outage.wait(error, Backoff(FIRST_RETRY_S, FIRST_RETRY_S))
            await self._insert(kind, batch.rows, settlement)
        else:
            settlement.stored[kind.name] += len(batch.rows)

    async def _insert(self, kind: Kind, rows: list[Row], settlement: Settlement) -> None:
        def attempt(some: list[Row]) -> Awaitable[Inserted]:
            return self._patiently(
                lambda connection: store.insert(connection, kind, some, self._days), give_back=Verdict.ROW
            )

        inserted, refused = await store.isolate(rows, attempt)
        settlement.stored[kind.name] += inserted.stored
        settlement.duplicate[kind.name] += inserted.duplicates
        settlement.rejections += [_conflict(kind, row) for row in inserted.conflicts]
        settlement.rejections += [_refused(kind, row, error) for row, error in refused]

    async def _patiently(self, work: Callable[[Connection], Awaitable[T]], give_back: Verdict | None = None) -> T:
        """Do `work` on a connection until it succeeds. Raises only errors with the verdict `give_back`."""
        backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        while True:
            try:
                async with lease(self._pool) as connection:
                    return await work(connection)
            except Exception as error:
                self._metrics.database_error(sqlstate(error))
                if judge(error) is give_back:
                    raise
                await self._outage.wait(error, backoff)


class _Outage:
    """Says once that the database is away, reminds of it now and then, and says when it is back."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._said: Verdict | None = None
        self._said_at_s = 0.0

    async def wait(self, error: Exception, backoff: Backoff) -> None:
        """A try failed: log it where it is news, and wait."""
        now_s = time.monotonic()
        if self._since_s is None:
            self._since_s = now_s
        if judge(error) is not self._said or now_s - self._said_at_s >= REMIND_INTERVAL_S:
            self._said, self._said_at_s = judge(error), now_s
            self._say(error)
        await asyncio.sleep(backoff.next_s())

    def _say(self, error: Exception) -> None:
        event = {"error": str(error) or type(error).__name__, "sqlstate": sqlstate(error)}
        if judge(error) is Verdict.PASSES:
            log.warning("database away, readings are kept and tried again", **event)
        else:
            log.error("database refuses to store, the flow stands still until this is mended", **event)

    def over(self) -> None:
        """A batch was stored."""
        if self._since_s is not None:
            log.info("database back", away_s=round(time.monotonic() - self._since_s, 1))
            self._since_s = self._said = None


def _conflict(kind: Kind, row: Row) -> Rejection:
    detail = f"{row[0]} has another reading at {row[1].isoformat()}, with other values; the first one stays"
    return _rejection(kind, row, "conflict", detail)


def _refused(kind: Kind, row: Row, error: Exception) -> Rejection:
    return _rejection(kind, row, "refused_by_database", f"{sqlstate(error)}: {error}")


def _rejection(kind: Kind, row: Row, reason: Reason, detail: str) -> Rejection:
    *_, received_at, payload = row
    return Rejection(received_at, topic_of(kind, row[0]), reason, detail, payload)
