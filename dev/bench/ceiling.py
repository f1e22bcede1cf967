"""What would be possible: each half of the way by itself, with nothing on the other side.

`COPY` is the database alone, `COPY and live state` the database doing all that the daemon asks of it, and `broker` the
broker with the load before it and a subscriber behind it that only acknowledges.
"""

import asyncio

from dev.bench.bed import Bed, Stopwatch
from dev.bench.copier import CopyCounts, CopyOptions
from dev.bench.plan import Plan, Tell
from dev.bench.results import Check, Measured
from dev.bench.sustained import WINDOW
from dev.bench.sustained_client import sustain_client
from dev.bench.worker import working

CEILINGS = {"COPY": False, "COPY and live state": True, "broker": None}
"""Name -> whether the live state is kept; None is the one without a database."""


async def measure(place: Bed, name: str, plan: Plan, tell: Tell) -> Measured:
    """One of them."""
    await place.without_daemon()
    with_live = CEILINGS[name]
    if with_live is None:
        measured, acknowledged, taken = await sustain_client(place, "null_subscriber", plan, WINDOW, tell)
        measured.checks.append(Check("messages taken", acknowledged, taken))
        return measured
    return await _copy(place, with_live, plan, tell)


async def _copy(place: Bed, with_live: bool, plan: Plan, tell: Tell) -> Measured:
    options = CopyOptions(place.database_url, plan.fleet, with_live)
    async with working("copier", options, CopyCounts(), place.folder) as copier:
        place.watch("client", copier.pid)
        await asyncio.sleep(plan.warm_up_s)
        before, reach, watch = copier.latest.stored, await place.reach(), Stopwatch(place)
        checkpoint = asyncio.create_task(place.checkpoint(), name="checkpoint")
        while watch.seconds < plan.seconds_elsewhere:
            tell(f"{copier.latest.stored:,} rows")
            await asyncio.sleep(0.1)
        elapsed_s, count = watch.seconds, copier.latest.stored - before
        values = {"stored_per_s": count / elapsed_s, **watch.cpu_us(count)}
        await checkpoint
        values["wal_bytes"] = ((await place.reach()).wal_bytes - reach.wal_bytes) / count
        stored = (await copier.end()).stored
    return Measured(values, await place.check(stored, plan.fleet if with_live else 0))
