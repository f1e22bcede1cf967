"""The history's partitions, one a UTC day: made ahead and on demand, dropped by retention."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from sql.pool import Connection, transaction
from sql.queries import query
from sql.turn import MAINTENANCE, take_turn

HISTORY_TABLES = ("meter_reading", "vehicle_reading")
DROP_LOCK_TIMEOUT = "1s"
"""Dropping a partition locks its parent. A long query then makes the drop wait for the next round, not the writers."""


class Days:
    """The days whose partitions are known to exist, so that a batch need not ask for each."""

    def __init__(self) -> None:
        self._known: dict[str, set[date]] = {table: set() for table in HISTORY_TABLES}

    async def ensure(self, connection: Connection, table: str, days: Iterable[date]) -> None:
        """Make the partitions of `table` for `days` where they are missing."""
        known = self._known[table]
        for day in sorted(set(days) - known):
            await connection.fetchval("SELECT ensure_day($1, $2)", table, day)
            known.add(day)

    def forget(self, table: str) -> None:
        """Take nothing for known: somebody may have dropped a partition."""
        self._known[table].clear()


async def make_days(connection: Connection, days: Iterable[date]) -> None:
    """Make the partitions of all history tables for `days`; somebody else who does maintenance is left to do it."""
    async with transaction(connection):
        if await take_turn(connection, MAINTENANCE):
            for table in HISTORY_TABLES:
                await Days().ensure(connection, table, days)


def days_between(first: datetime, last: datetime) -> list[date]:
    """The UTC days from one instant to another, both included."""
    start, end = first.astimezone(UTC).date(), last.astimezone(UTC).date()
    return [start + timedelta(days=n) for n in range((end - start).days + 1)]


async def list_days(connection: Connection, table: str) -> dict[str, date]:
    """The partitions of a history table and the UTC day that each holds."""
    return {row["partition"]: row["day"] for row in await connection.fetch(query("partitions"), table)}


async def drop_before(connection: Connection, table: str, first_day_kept: date) -> list[str]:
    """Drop the partitions of the days before `first_day_kept`, one transaction each, and return their names.

    While somebody else does maintenance, the rest is left to them.
    Raises asyncpg.LockNotAvailableError when a long query holds one of them; those before it are gone by then.
    """
    dropped = []
    for partition, day in sorted((await list_days(connection, table)).items()):
        if day < first_day_kept:
            async with transaction(connection):
                await connection.execute(f"SET LOCAL lock_timeout = '{DROP_LOCK_TIMEOUT}'")
                if not await take_turn(connection, MAINTENANCE):
                    break
                if partition not in await list_days(connection, table):
                    continue  # whoever had the turn before has dropped it
                await connection.execute(f'DROP TABLE "{partition}"')
            dropped.append(partition)
    return dropped
