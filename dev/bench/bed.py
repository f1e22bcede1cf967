"""Where one thing is measured: a stack of its own with nothing stored yet, and eyes on its processes and its tables."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiomqtt
import asyncpg
import psutil
from msgspec import Struct

from daemon.settings import DaemonSettings
from dev.bench.results import Check
from dev.books import read_books
from dev.broker import PrivateBroker
from dev.house import eventually
from dev.postgres import PrivatePostgres
from dev.processes import Child
from dev.stack import Stack, end_leftovers
from sql.partitions import HISTORY_TABLES, Days, days_between

MEBIBYTE = 1024 * 1024
PATIENCE_S = 120.0
"""For what is still under way when the load has ended."""


class Reach(Struct):
    """How far PostgreSQL has come, for differences."""

    wal_bytes: int
    checkpoints: int


class Bed(Struct):
    """The parts of the stack, and the processes whose cost is told."""

    postgres: PrivatePostgres
    broker: PrivateBroker
    daemon: Child
    database_url: str
    metrics_url: str
    """Of the daemon."""
    folder: Path
    connection: asyncpg.Connection
    pids: dict[str, int] = {}

    def __post_init__(self) -> None:
        self.pids = {"PostgreSQL": self.postgres.process.pid, "broker": self.broker.process.pid}
        if self.daemon.is_running:
            self.watch("daemon", self.daemon.pid)

    def watch(self, name: str, pid: int) -> None:
        """Tell of this process as well."""
        self.pids[name] = pid

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, of each process with its children."""
        return {name: cpu_of_family_s(psutil.Process(pid)) for name, pid in self.pids.items()}

    def resident_mib(self, name: str) -> float:
        """The memory that a process takes."""
        return float(psutil.Process(self.pids[name]).memory_info().rss / MEBIBYTE)

    async def reach(self) -> Reach:
        """How far PostgreSQL has come."""
        row = await self.connection.fetchrow(
            "SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint AS wal_bytes, "
            "(SELECT num_timed + num_requested FROM pg_stat_checkpointer)::bigint AS checkpoints"
        )
        return Reach(**row)

    async def checkpoint(self) -> None:
        """Have PostgreSQL make a checkpoint, on a connection that nobody else waits for."""
        connection = await asyncpg.connect(self.database_url)
        try:
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()

    async def history_bytes(self) -> int:
        """Tables of the history with their keys."""
        return int(
            await self.connection.fetchval(
                "SELECT sum(pg_total_relation_size(relid))::bigint FROM "
                "(SELECT relid FROM pg_partition_tree('meter_reading') "
                "UNION ALL SELECT relid FROM pg_partition_tree('vehicle_reading')) AS parts"
            )
        )

    async def live_bytes(self) -> int:
        """Tables of the live state with their keys."""
        size = "SELECT pg_total_relation_size('meter_status') + pg_total_relation_size('vehicle_status')"
        return int(await self.connection.fetchval(size))

    async def stored(self) -> int:
        """How many readings the daemon has settled, as it says."""
        return (await read_books(self.metrics_url)).settled

    async def settled(self, acknowledged: int) -> None:
        """Wait until the daemon has settled so many."""

        async def has_settled() -> bool:
            return await self.stored() >= acknowledged

        await eventually(has_settled, PATIENCE_S)

    async def check(self, acknowledged: int, devices: int) -> list[Check]:
        """Whether every reading that the broker acknowledged is there, once, and a live row for every device."""
        return [
            Check("rows of the history", acknowledged, await self._count("reading")),
            Check("rows of the live state", devices, await self._count("status")),
        ]

    async def _count(self, suffix: str) -> int:
        counting = f"SELECT (SELECT count(*) FROM meter_{suffix}) + (SELECT count(*) FROM vehicle_{suffix})"  # noqa: S608 - ours
        return int(await self.connection.fetchval(counting))

    async def without_daemon(self) -> None:
        """Stop the daemon, have the broker keep nothing for it, and do what it does for others who store."""
        self.pids.pop("daemon")
        await asyncio.to_thread(self.daemon.stop)
        # In its name and with a clean start: that ends its session.
        client_id = DaemonSettings(database_url="postgresql://unused", mqtt_url="mqtt://unused").mqtt_client_id
        async with aiomqtt.Client(
            "127.0.0.1", self.broker.port, identifier=client_id, protocol=aiomqtt.ProtocolVersion.V5
        ):
            pass
        async with self.connection.transaction():
            today = datetime.now(UTC)
            for table in HISTORY_TABLES:
                await Days().ensure(self.connection, table, days_between(today, today + timedelta(days=1)))


@asynccontextmanager
async def bed(folder: Path) -> AsyncIterator[Bed]:
    """A stack for the time of the block, without the sidecar."""
    await asyncio.to_thread(_clear, folder)
    stack = Stack(folder)
    await asyncio.to_thread(stack.__enter__)
    try:
        await asyncio.to_thread(stack.api.stop)
        connection = await asyncpg.connect(stack.database_url)
        try:
            yield Bed(
                *(stack.postgres, stack.broker, stack.daemon),
                database_url=stack.database_url,
                metrics_url=stack.metrics_url,
                folder=folder,
                connection=connection,
            )
        finally:
            await connection.close()
    finally:
        await asyncio.to_thread(stack.stop)
    await asyncio.to_thread(_clear, folder)  # after an error the logs stay, until the next one starts here


def _clear(folder: Path) -> None:
    end_leftovers(folder)
    shutil.rmtree(folder, ignore_errors=True)


def cpu_of_family_s(process: psutil.Process) -> float:
    """CPU seconds so far, of a process with its children."""
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        times = member.cpu_times()
        total += times.user + times.system
        if member == process:  # of children that have ended
            total += times.children_user + times.children_system
    return total


class Stopwatch:
    """What an interval took, from one look to the next."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self._at_s = time.perf_counter()
        self._cpu_s = bed.cpu_s()

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.perf_counter() - self._at_s

    def cpu_us(self, readings: int) -> dict[str, float]:
        """By process, for each of that many readings, as a record names it."""
        now = self._bed.cpu_s()
        return {f"cpu_us {name}": (now[name] - self._cpu_s.get(name, 0.0)) / readings * 1e6 for name in now}
