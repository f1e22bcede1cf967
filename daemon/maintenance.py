"""What the tables need now and then: the schema checked, partitions made ahead, what has expired dropped and purged.

Of several daemons each checks the schema for itself. The rest is done by one at a time (`sql.turn`); who finds another
at it leaves it to that one, without a word.
"""

from datetime import UTC, date, datetime, timedelta
from functools import partial

import structlog
from msgspec import Struct

from daemon.backoff import Backoff
from daemon.metrics import Metrics
from daemon.rounds import repeat
from daemon.settings import DaemonSettings
from sql import rejections
from sql.errors import SchemaError
from sql.measure import rollup_state
from sql.migrate import verify
from sql.partitions import drop_before, make_days
from sql.pool import Connection, Pool, lease
from sql.rollups import KINDS, drop_cells_before, first_day_needed, keep_history_from
from sql.store import Kind

log = structlog.get_logger("fleetwatt.maintenance")

INTERVAL_S = 3600.0
DAYS_AHEAD = 7
"""A daemon that cannot do its maintenance for a week still finds its partitions ready."""
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 10.0
PURGE_ROWS_MAX = 10_000
"""Rejections that are deleted in one transaction."""


class Retention(Struct, frozen=True):
    """For how many days what is kept; 0 keeps for ever."""

    history_days: int = 0
    rollup_days: int = 0
    rejection_days: int = 0

    @classmethod
    def of(cls, settings: DaemonSettings) -> "Retention":
        """As the settings have it."""
        return cls(settings.retention_days, settings.rollup_retention_days, settings.rejection_retention_days)


class Maintenance:
    """Does its round at the start and every hour; a round that fails is tried again sooner."""

    def __init__(self, pool: Pool, retention: Retention, metrics: Metrics) -> None:
        self._pool = pool
        self._retention = retention
        self._metrics = metrics
        self.schema_fault: str | None = "the schema was not checked yet"
        """What is wrong with the schema, or None."""

    async def run(self) -> None:
        """Rounds for ever."""
        backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        await repeat(self._work, INTERVAL_S, backoff, partial(log.error, "maintenance failed, trying again"))

    async def _work(self) -> None:
        async with lease(self._pool) as connection:
            await self._round(connection)
        await self._purge()

    async def _round(self, connection: Connection) -> None:
        try:
            await verify(connection)
        except SchemaError as error:
            self.schema_fault = str(error)
            raise
        self.schema_fault = None
        today = datetime.now(UTC).date()
        await make_days(connection, days_ahead(today))
        for kind in KINDS:  # afterwards, for a lock may make it fail
            if self._retention.history_days:
                await self._drop(connection, kind, first_day_kept(today, self._retention.history_days))
            if self._retention.rollup_days:
                # Never before the history: where there are readings, cells that are missing would be taken for silence.
                kept_from = (await rollup_state(connection, kind)).kept_from.date()
                first_kept = min(first_day_kept(today, self._retention.rollup_days), kept_from)
                await drop_cells_before(connection, kind, first_kept)

    async def _drop(self, connection: Connection, kind: Kind, first_kept: date) -> None:
        """Drop the days before `first_kept`, but none whose readings are still to be rolled up."""
        first_needed = await first_day_needed(connection, kind)
        first_kept = min(first_kept, first_needed)
        await keep_history_from(connection, kind, first_kept)
        dropped = await drop_before(connection, kind.history_table, first_kept)
        self._metrics.partitions_dropped.inc(len(dropped))
        if dropped:
            log.info("dropped history that is past its retention", table=kind.history_table, partitions=dropped)

    async def _purge(self) -> None:
        """Delete rejections that are past their retention, each slice on a lease of its own: there may be many."""
        if not self._retention.rejection_days:
            return
        before = datetime.now(UTC) - timedelta(days=self._retention.rejection_days)
        purged, slice_rows = 0, PURGE_ROWS_MAX
        while slice_rows == PURGE_ROWS_MAX:
            async with lease(self._pool) as connection:
                slice_rows = await rejections.purge(connection, before, PURGE_ROWS_MAX)
            self._metrics.rejections_purged.inc(slice_rows)
            purged += slice_rows
        if purged:
            log.info("purged rejections that are past their retention", rejections=purged)


def days_ahead(today: date) -> list[date]:
    """The days whose partitions should be there."""
    return [today + timedelta(days=n) for n in range(DAYS_AHEAD + 1)]


def first_day_kept(today: date, retention_days: int) -> date:
    """The first UTC day of which a part is within the retention."""
    return today - timedelta(days=retention_days)
