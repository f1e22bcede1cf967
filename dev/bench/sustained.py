"""Sustained ingest: how many readings a second are stored for as long as it goes on, while they are being published.

The load may be at most a window of readings ahead of what is stored, so no queue grows without end and nobody is idle
for lack of work: what is published in the long run is what is stored. Measured is what is stored in an interval after
the warm-up. A checkpoint begins with the interval, so its writes, and the whole pages that PostgreSQL logs after one,
are in the figure.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise

from dev.bench.bed import PATIENCE_S, Bed, Stopwatch
from dev.bench.generator import LoadCounts, LoadOptions
from dev.bench.plan import Plan, Tell
from dev.bench.results import Check, Measured
from dev.bench.worker import Worker, working
from dev.books import read_books
from dev.house import eventually

WINDOW = 100_000
POLL_S = 0.2
SLOWEST_S = 5


class SustainedError(Exception):
    """Nothing is stored any more."""


class Pace:
    """Keeps the load at most a window ahead of what is stored."""

    def __init__(
        self,
        load: Worker[LoadCounts],
        stored: Callable[[], Awaitable[int]],
        window: int,
        looked: Callable[[int], None],
    ) -> None:
        """`looked` is told at each look what is stored."""
        self.stored = 0
        self._load = load
        self._ask = stored
        self._window = window
        self._looked = looked

    async def until(self, is_enough: Callable[[], bool]) -> None:
        """Go on until it is enough."""
        progress_at_s = time.monotonic()
        while not is_enough():
            stored = await self._ask()
            if stored > self.stored:
                progress_at_s = time.monotonic()
            elif time.monotonic() - progress_at_s > PATIENCE_S:
                raise SustainedError(f"nothing was stored for {PATIENCE_S:g} s after {stored:,} readings")
            self.stored = stored
            self._load.tell(f"allow {stored + self._window}")
            self._looked(stored)
            await asyncio.sleep(POLL_S)

    async def last(self) -> int:
        """End the load, wait until all of it is stored, and return how many messages the broker acknowledged."""
        acknowledged = (await self._load.end()).acknowledged

        async def is_stored() -> bool:
            return await self._ask() >= acknowledged

        await eventually(is_stored, PATIENCE_S)
        return acknowledged


async def measure(place: Bed, devices: str, plan: Plan, tell: Tell) -> Measured:
    """The daemon's sustained rate with a fleet of so many devices."""
    count = int(devices)
    measured, acknowledged = await sustain(place, count, plan, plan.seconds, place.stored, "daemon", WINDOW, tell)
    books = await read_books(place.metrics_url)
    measured.values["slow_batches"] = books.slow_batches
    measured.values["history_bytes"] = await place.history_bytes() / acknowledged
    measured.values["live_bytes"] = await place.live_bytes() / count
    measured.checks += [
        *await place.check(acknowledged, count),
        Check("duplicate or rejected", 0, books.duplicate + sum(books.rejected.values())),
    ]
    return measured


async def sustain(
    place: Bed,
    devices: int,
    plan: Plan,
    seconds: int,
    stored: Callable[[], Awaitable[int]],
    consumer: str,
    window: int,
    tell: Tell,
) -> tuple[Measured, int]:
    """Measure the consumer, of which `stored` says how many readings it has dealt with.

    Returns as well how many messages the broker acknowledged, all of which are dealt with by then.
    """
    resident_mib = 0.0

    def looked(count: int) -> None:
        nonlocal resident_mib
        resident_mib = max(resident_mib, place.resident_mib(consumer))
        tell(f"{count:,} readings")

    options = LoadOptions(place.broker.port, devices)
    async with working("generator", options, LoadCounts(), place.folder) as load:
        place.watch("generator", load.pid)
        pace = Pace(load, stored, window, looked)
        began_at_s = time.perf_counter()
        await pace.until(lambda: pace.stored >= devices)
        first_sight_s = time.perf_counter() - began_at_s
        await pace.until(lambda: time.perf_counter() - began_at_s >= plan.warm_up_s)
        measured = await _interval(place, pace, seconds)
        measured.values["first_sight_per_s"] = devices / first_sight_s
        acknowledged = await pace.last()
    measured.values["resident_mib"] = resident_mib
    return measured, acknowledged


async def _interval(place: Bed, pace: Pace, seconds: int) -> Measured:
    reach, stored, watch = await place.reach(), pace.stored, Stopwatch(place)
    checkpoint = asyncio.create_task(place.checkpoint(), name="checkpoint")
    looks = [(0.0, stored)]
    for second in range(1, seconds + 1):
        await pace.until(partial(_has_come, watch, second))
        looks.append((watch.seconds, pace.stored))
    elapsed_s, count = watch.seconds, pace.stored - stored
    values = {"stored_per_s": count / elapsed_s, **watch.cpu_us(count)}
    await checkpoint
    after = await place.reach()
    values["wal_bytes"] = (after.wal_bytes - reach.wal_bytes) / count
    values["checkpoints"] = after.checkpoints - reach.checkpoints
    if len(looks) > SLOWEST_S:
        values["slowest_5_s_per_s"] = min(map(_rate, looks, looks[SLOWEST_S:]))
    return Measured(values, per_second=[after - before for (_, before), (_, after) in pairwise(looks)])


def _rate(first: tuple[float, int], last: tuple[float, int]) -> float:
    return (last[1] - first[1]) / (last[0] - first[0])


def _has_come(watch: Stopwatch, second: int) -> bool:
    return watch.seconds >= second
