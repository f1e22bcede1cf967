"""The drain of a backlog: messages pile up at the broker while the daemon is away, and then nothing else is published.

The time runs from the daemon's first reading to the commit of its last.
"""

import asyncio
import time

from dev.bench.bed import Bed, Stopwatch
from dev.bench.generator import LoadCounts, LoadOptions
from dev.bench.plan import Plan, Tell
from dev.bench.results import Measured
from dev.bench.worker import working
from dev.books import Books, read_books

POLL_S = 0.05


async def measure(place: Bed, messages: str, plan: Plan, tell: Tell) -> Measured:
    """One backlog of that many messages."""
    count = int(messages)
    await asyncio.to_thread(place.daemon.stop)
    values = {"published_per_s": await _publish(place, count, plan.fleet, tell)}
    place.pids.pop("daemon")
    watch = Stopwatch(place)
    await asyncio.to_thread(place.daemon.start, lambda: True)
    place.watch("daemon", place.daemon.pid)
    values |= await _drain(place, count, watch, tell)
    checks = await place.check(count, min(plan.fleet, count))
    return Measured(values, checks)


async def _publish(place: Bed, count: int, fleet: int, tell: Tell) -> float:
    """Fill the queue, and return how many messages a second it took."""
    options = LoadOptions(place.broker.port, fleet)
    async with working("generator", options, LoadCounts(), place.folder) as load:
        began_at_s = time.perf_counter()
        load.tell(f"allow {count}")
        while load.latest.acknowledged < count:
            tell(f"{load.latest.acknowledged:,} published")
            await asyncio.sleep(POLL_S)
        elapsed_s = time.perf_counter() - began_at_s
        await load.end()
    return count / elapsed_s


async def _drain(place: Bed, count: int, watch: Stopwatch, tell: Tell) -> dict[str, float]:
    first_at_s = 0.0
    resident_mib: list[float] = []
    """After each tenth."""
    books = Books()
    while books.settled < count:
        await asyncio.sleep(POLL_S)
        books = await _books(place)
        if not first_at_s and books.received:
            first_at_s = time.perf_counter() - POLL_S
        if books.settled * 10 // count > len(resident_mib):
            resident_mib.append(place.resident_mib("daemon"))
        tell(f"{books.settled:,} stored")
    elapsed_s = time.perf_counter() - first_at_s
    return {
        "stored_per_s": count / elapsed_s,
        **watch.cpu_us(count),
        "resident_mib after a tenth": resident_mib[0],
        "resident_mib": max(resident_mib),
        "slow_batches": books.slow_batches,
    }


async def _books(place: Bed) -> Books:
    try:
        return await read_books(place.metrics_url)
    except OSError:  # not up yet
        return Books()
