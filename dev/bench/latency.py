"""Latency: from the moment a device publishes a reading to the one in which a SELECT elsewhere sees it.

The load runs at its rate whatever becomes of it (open loop). Beside it a prober, a process of its own, publishes
readings of a device of its own at random moments, and asks the database for them on a connection of its own, every
`dev.bench.prober.POLL_S`, until they are there. The time runs from before the packet is made to the answer that has the
row, so making the packet, the poll and the answer's way are in it.
"""

import asyncio
import time

from dev.bench.bed import Bed
from dev.bench.generator import LoadCounts, LoadOptions
from dev.bench.plan import Plan, Tell
from dev.bench.prober import ProbeCounts, ProbeOptions
from dev.bench.results import Measured, quantile
from dev.bench.worker import working


async def measure(place: Bed, rate: str, plan: Plan, tell: Tell) -> Measured:
    """The latency beside a load of that many messages a second."""
    options = LoadOptions(place.broker.port, plan.fleet, per_s=float(rate))
    async with working("generator", options, LoadCounts(), place.folder) as load:
        tell("warming up")
        await asyncio.sleep(plan.warm_up_s)
        before, began_at_s = load.latest.acknowledged, time.perf_counter()
        probing = ProbeOptions(place.broker.port, place.database_url)
        async with working("prober", probing, ProbeCounts(), place.folder) as prober:
            while (elapsed_s := time.perf_counter() - began_at_s) < plan.seconds_elsewhere:
                tell(f"{prober.latest.came_back:,} probes came back")
                await asyncio.sleep(0.2)
            values = {"published_per_s": (load.latest.acknowledged - before) / elapsed_s}
            probes = await prober.end()
        acknowledged = (await load.end()).acknowledged + probes.came_back
    values |= _of_probes(probes)
    await place.settled(acknowledged)
    checks = await place.check(acknowledged, min(plan.fleet, acknowledged - probes.came_back) + 1)
    return Measured(values, checks)


def _of_probes(probes: ProbeCounts) -> dict[str, float]:
    latencies_s = sorted(probes.latencies_s)
    return {
        "p50_ms": quantile(latencies_s, 0.5) * 1000,
        "p99_ms": quantile(latencies_s, 0.99) * 1000,
        "max_ms": latencies_s[-1] * 1000,
        "probes": len(latencies_s),
        "poll_ms": probes.seconds / max(probes.polls, 1) * 1000,
    }
