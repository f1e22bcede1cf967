"""`python -m dev viewers`: what it costs that many people look at the first page while readings come in.

A load at a fixed rate runs all the while, whatever becomes of it. After a warm-up it is measured for some seconds
without viewers, then with them. A viewer is a connection that follows `/live` and counts what comes.
"""

import asyncio
import contextlib
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from api.web.books import read_books
from dev.bench.bed import cpu_of_family_s
from dev.bench.generator import LoadCounts, LoadOptions
from dev.bench.worker import working
from dev.books import get
from dev.house import eventually
from dev.stack import Stack

WARM_UP_S = 10.0
PATIENCE_S = 60.0
PARTS = ("sidecar", "daemon", "PostgreSQL")
ROWS = (
    "readings/s settled",
    "p99 from device to database, s",
    "looks/s of the sidecar",
    "events/s to all viewers",
    "KB/s to each viewer",
    *(f"CPU of {part}, % of a core" for part in PARTS),
)


class Viewers:
    """Browsers that follow the stream."""

    def __init__(self, api_url: str) -> None:
        self._address = urlsplit(api_url)
        self._tasks: list[asyncio.Task[None]] = []
        self._came = 0
        self.events = 0
        self.bytes = 0

    async def come(self, count: int) -> None:
        """So many more, and wait until each has its first event."""
        self._tasks += [asyncio.create_task(self._follow(), name="viewer") for _ in range(count)]

        async def have_all_come() -> bool:
            return self._came == len(self._tasks)

        await eventually(have_all_come, PATIENCE_S)

    async def go(self) -> None:
        """All of them leave."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _follow(self) -> None:
        host, port = self._address.hostname or "", self._address.port or 80
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET /live HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        with contextlib.closing(writer):
            await reader.readuntil(b"event: parts")
            self._came += 1
            while line := await reader.readline():
                self.bytes += len(line)
                self.events += line.startswith(b"event: parts")


class Look(Struct):
    """Counts at one moment."""

    at_s: float
    settled: int
    lag_s: float
    cpu_s: dict[str, float]
    looks: float
    events: int
    bytes: int


async def viewers(folder: Path, count: int, per_s: int, seconds: int, devices: int) -> None:
    """Measure, and print a table."""
    stack = Stack(folder)
    await asyncio.to_thread(stack.__enter__)
    columns = []
    try:
        async with working("generator", LoadOptions(stack.broker.port, devices, per_s=per_s), LoadCounts(), folder):
            await asyncio.sleep(WARM_UP_S)
            audience = Viewers(stack.api_url)
            for number in (0, count):
                await audience.come(number)
                before = await _look(stack, audience)
                await asyncio.sleep(seconds)
                after = await _look(stack, audience)
                columns.append(_figures(before, after, max(number, 1)))
            await audience.go()
    finally:
        await asyncio.to_thread(stack.stop)
    table = Table("", "no viewers", f"{count} viewers")
    for name, *row in zip(ROWS, *columns, strict=True):
        table.add_row(name, *row)
    Console().print(table)


async def _look(stack: Stack, audience: Viewers) -> Look:
    books = await read_books([stack.metrics_url])
    families = text_string_to_metric_families(await asyncio.to_thread(get, f"{stack.api_url}/metrics"))
    samples = {sample.name: sample.value for family in families for sample in family.samples}
    pids = dict(zip(PARTS, (stack.api.pid, stack.daemon.pid, stack.postgres.process.pid), strict=True))
    return Look(
        at_s=time.perf_counter(),
        settled=books.received - books.in_flight - books.spooled,
        lag_s=books.device_to_commit_s or 0.0,
        cpu_s={name: cpu_of_family_s(psutil.Process(pid)) for name, pid in pids.items()},
        looks=samples["fleetwatt_http_live_looks_total"],
        events=audience.events,
        bytes=audience.bytes,
    )


def _figures(before: Look, after: Look, viewers: int) -> list[str]:
    seconds = after.at_s - before.at_s
    return [
        f"{(after.settled - before.settled) / seconds:,.0f}",
        f"{after.lag_s:.3f}",
        f"{(after.looks - before.looks) / seconds:.2f}",
        f"{(after.events - before.events) / seconds:,.0f}",
        f"{(after.bytes - before.bytes) / seconds / viewers / 1000:.1f}",
        *(f"{100 * (after.cpu_s[name] - before.cpu_s[name]) / seconds:.0f}" for name in after.cpu_s),
    ]
