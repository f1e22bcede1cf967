"""`python -m dev bench`: how fast a backlog is stored, and what it costs.

The daemon is stopped, QoS 1 messages pile up at the broker, the daemon is started; the time runs from its first reading
to the commit of its last. Broker, database (with its default durability) and daemon share this machine, and a publisher
that keeps its packets ready is not running meanwhile.
"""

import asyncio
import os
import platform
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from dev.books import Books, read_books
from dev.publisher import Publisher
from dev.stack import Stack

DEVICES = 10_000
POLL_S = 0.05
MEBIBYTE = 1024 * 1024


class Drain(Struct):
    """One backlog stored."""

    published_per_s: float
    stored_per_s: float
    resident_mib: list[float]
    """Of the daemon: after each tenth of the messages."""
    cpu_us: dict[str, float]
    """Per message, by process."""
    slow_batches: int


async def bench(folder: Path, messages: int, runs: int) -> int:
    """Measure, print, and return the exit code: 1 where a reading is missing afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    console = Console()
    with Stack(folder) as stack:
        connection = await asyncpg.connect(stack.database_url)
        version = await connection.fetchval("SHOW server_version")
        console.print(
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, PostgreSQL {version}; "
            f"{messages:,} messages of QoS 1 from {DEVICES:,} devices of each kind"
        )
        drains = []
        for number in range(runs):
            drains.append(await _drain(stack, messages, number))
            console.print(f"run {number + 1}: {drains[-1].stored_per_s:,.0f} readings/s stored")
        stored = await connection.fetchval(
            "SELECT (SELECT count(*) FROM meter_reading) + (SELECT count(*) FROM vehicle_reading)"
        )
        await connection.close()
    console.print(_table(drains))
    console.print(f"{messages * runs:,} readings published, {stored:,} in the database")
    return 0 if stored == messages * runs else 1


async def _drain(stack: Stack, messages: int, number: int) -> Drain:
    await asyncio.to_thread(stack.daemon.stop)
    started_at_s = time.perf_counter()
    await Publisher(stack.broker.port, "bench").publish(_messages(messages, number))
    published_per_s = messages / (time.perf_counter() - started_at_s)
    before = _cpu_s(stack, with_daemon=False)
    await asyncio.to_thread(stack.daemon.start, lambda: True)
    first_at_s, resident_mib = None, list[float]()
    while (books := await _books(stack)).settled < messages:
        if first_at_s is None and books.received:
            first_at_s = time.perf_counter() - POLL_S
        if books.settled * 10 // messages > len(resident_mib):
            resident_mib.append(_resident_mib(stack))
        await asyncio.sleep(POLL_S)
    elapsed_s = time.perf_counter() - (first_at_s or started_at_s)
    resident_mib.append(_resident_mib(stack))
    after = _cpu_s(stack, with_daemon=True)
    return Drain(
        published_per_s=published_per_s,
        stored_per_s=messages / elapsed_s,
        resident_mib=resident_mib,
        cpu_us={name: (after[name] - before.get(name, 0.0)) / messages * 1e6 for name in after},
        slow_batches=books.slow_batches,
    )


def _resident_mib(stack: Stack) -> float:
    return psutil.Process(stack.daemon.pid).memory_info().rss / MEBIBYTE


async def _books(stack: Stack) -> Books:
    try:
        return await read_books(stack.metrics_url)
    except OSError:  # not up yet
        return Books()


def _messages(count: int, number: int) -> Iterator[tuple[str, bytes]]:
    start_s = int(time.time()) // 60 * 60 - 40 * 86400 + number * 86400
    for n in range(count):
        device, unix_s = n // 2 % DEVICES, start_s + n // (2 * DEVICES) * 60
        if n % 2:
            body = b'{"meterId":"m%d","kwhConsumedAc":0.123456,"voltage":230.1,"timestamp":%d}'
            yield f"meters/m{device}/reading", body % (device, unix_s)
        else:
            body = b'{"vehicleId":"v%d","soc":55.5,"kwhDeliveredDc":0.123456,"batteryTemp":21.5,"timestamp":%d}'
            yield f"vehicles/v{device}/reading", body % (device, unix_s)


def _cpu_s(stack: Stack, *, with_daemon: bool) -> dict[str, float]:
    """CPU seconds so far, of each part with its children."""
    parts = {"broker": stack.broker.process.pid, "PostgreSQL": stack.postgres.process.pid}
    if with_daemon:
        parts["daemon"] = stack.daemon.pid
    return {name: _cpu_of_family_s(psutil.Process(pid)) for name, pid in parts.items()}


def _cpu_of_family_s(process: psutil.Process) -> float:
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        times = member.cpu_times()
        total += times.user + times.system
        if member == process:  # of children that have ended
            total += times.children_user + times.children_system
    return total


def _table(drains: list[Drain]) -> Table:
    table = Table()
    for heading in ("", "median", "least", "greatest"):
        table.add_column(heading, justify="right" if heading else "left")

    def row(name: str, values: list[float], digits: int = 0) -> None:
        table.add_row(name, *(f"{pick(values):,.{digits}f}" for pick in (statistics.median, min, max)))

    row("published, messages/s", [drain.published_per_s for drain in drains])
    row("stored, readings/s", [drain.stored_per_s for drain in drains])
    for name in drains[0].cpu_us:
        row(f"CPU of the {name}, µs a reading", [drain.cpu_us[name] for drain in drains], 1)
    for tenth, name in ((0, "a tenth"), (-1, "all")):
        row(f"memory of the daemon after {name}, MiB", [drain.resident_mib[tenth] for drain in drains], 1)
    row("batches that went the slow way", [float(drain.slow_batches) for drain in drains])
    return table
