"""`python -m dev outage`: an hour's readings of a fleet arrive while the database is away, and what that costs.

The database is killed, the readings are published as fast as the broker takes them (so the hour takes seconds), the
daemon puts them into its spool; the database is started again and the time runs until the spool is empty. While that
goes on the fleet sends at its own rate, so the drain is measured beside live readings.
"""

import asyncio
import math
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psutil
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from dev.books import Books, read_books
from dev.publisher import Publisher
from dev.stack import Stack

MEBIBYTE = 1024 * 1024
POLL_S = 0.05


class Outage(Struct):
    """One outage, from its start to the empty spool."""

    spooled_per_s: float
    spool_mib: float
    drained_per_s: float
    first_commit_after_s: float
    """From the moment in which the database answers again."""
    resident_mib: float
    """The most that the daemon took at any time."""


async def outage(folder: Path, devices: int, minutes: int, runs: int) -> int:
    """Measure, print, and return the exit code: 1 where a reading is missing afterwards."""
    console, outages = Console(), []
    for number in range(runs):
        shutil.rmtree(folder, ignore_errors=True)
        with Stack(folder) as stack:
            measured, missing = await _measure(stack, devices, minutes)
        if missing:
            console.print(f"run {number + 1}: {missing:,} readings are missing")
            return 1
        outages.append(measured)
        console.print(f"run {number + 1}: drained at {measured.drained_per_s:,.0f} readings/s, nothing missing")
    console.print(_table(outages, devices, minutes))
    return 0


async def _measure(stack: Stack, devices: int, minutes: int) -> tuple[Outage, int]:
    """The outage, and how many readings are missing after it."""
    watch = _Watch(stack.daemon.pid)
    watching = asyncio.create_task(watch.run())
    publisher = Publisher(stack.broker.port, "outage")
    readings = devices * minutes
    stack.postgres.process.kill()
    began_at_s = time.perf_counter()
    await publisher.publish(_readings(devices, 0, minutes))
    await _until(stack, lambda books: books.spooled == readings)
    spooled_in_s = time.perf_counter() - began_at_s
    spool_bytes = sum(file.stat().st_size for file in (stack.folder / "spool").iterdir())

    await asyncio.to_thread(stack.postgres.start)
    answers_at_s = time.perf_counter()
    living = asyncio.create_task(_live(publisher, devices, minutes))
    first = await _until(stack, lambda books: books.settled > 0)
    first_at_s = time.perf_counter()
    await _until(stack, lambda books: books.spooled == 0)
    drained_in_s = time.perf_counter() - first_at_s
    living.cancel()
    await asyncio.wait([living])
    await _until(stack, lambda books: books.settled >= publisher.acknowledged)
    watching.cancel()
    measured = Outage(
        spooled_per_s=readings / spooled_in_s,
        spool_mib=spool_bytes / MEBIBYTE,
        drained_per_s=first.spooled / drained_in_s,
        first_commit_after_s=first_at_s - answers_at_s,
        resident_mib=watch.most_bytes / MEBIBYTE,
    )
    return measured, publisher.acknowledged - await _count(stack)


async def _live(publisher: Publisher, devices: int, minute: int) -> None:
    """The fleet goes on at a reading a minute and device."""
    readings = _readings(devices, minute, 1_000_000)
    while True:
        began_at_s = time.perf_counter()
        await publisher.publish([next(readings) for _ in range(math.ceil(devices / 60))])
        await asyncio.sleep(max(0.0, began_at_s + 1 - time.perf_counter()))


async def _until(stack: Stack, condition: Callable[[Books], bool]) -> Books:
    """The books in the moment in which a condition holds."""
    while True:
        books = await read_books(stack.metrics_url)
        if condition(books):
            return books
        await asyncio.sleep(POLL_S)


async def _count(stack: Stack) -> int:
    connection = await asyncpg.connect(stack.database_url)
    try:
        return int(
            await connection.fetchval(
                "SELECT (SELECT count(*) FROM meter_reading) + (SELECT count(*) FROM vehicle_reading)"
            )
        )
    finally:
        await connection.close()


class _Watch:
    """The most memory that a process takes."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.most_bytes = 0

    async def run(self) -> None:
        while True:
            self.most_bytes = max(self.most_bytes, self._process.memory_info().rss)
            await asyncio.sleep(POLL_S)


def _readings(devices: int, first_minute: int, minutes: int) -> Iterator[tuple[str, bytes]]:
    """Readings of as many meters as vehicles, with values that differ as real ones do."""
    chance = random.Random(first_minute)  # noqa: S311 - makes values, keeps no secret
    start_s = int(time.time()) // 60 * 60 - 86400
    for minute in range(first_minute, first_minute + minutes):
        for device in range(devices):
            unix_s, kwh = start_s + minute * 60 + device % 60, chance.uniform(0, 0.37)
            if device % 2:
                body = b'{"meterId":"m%d","kwhConsumedAc":%.6f,"voltage":%.1f,"timestamp":%d}'
                yield f"meters/m{device}/reading", body % (device, kwh, chance.gauss(230, 2), unix_s)
            else:
                body = b'{"vehicleId":"v%d","soc":%.1f,"kwhDeliveredDc":%.6f,"batteryTemp":%.1f,"timestamp":%d}'
                values = (device, chance.uniform(10, 95), kwh, chance.gauss(24, 4), unix_s)
                yield f"vehicles/v{device}/reading", body % values


def _table(outages: list[Outage], devices: int, minutes: int) -> Table:
    live_per_s = devices / 60
    table = Table(title=f"{devices:,} devices, {minutes} minutes: {devices * minutes:,} readings", title_justify="left")
    for heading in ("", "median", "least", "greatest"):
        table.add_column(heading, justify="right" if heading else "left")

    def row(name: str, values: list[float], digits: int = 0) -> None:
        table.add_row(name, *(f"{pick(values):,.{digits}f}" for pick in (statistics.median, min, max)))

    row("into the spool, readings/s", [each.spooled_per_s for each in outages])
    row("size of the spool, MiB", [each.spool_mib for each in outages], 1)
    row("first commit after the database answers, s", [each.first_commit_after_s for each in outages], 1)
    row("out of the spool, readings/s", [each.drained_per_s for each in outages])
    row(
        f"the same, as a multiple of {live_per_s:,.0f} live readings/s", [e.drained_per_s / live_per_s for e in outages]
    )
    row("most memory of the daemon, MiB", [each.resident_mib for each in outages], 1)
    return table
