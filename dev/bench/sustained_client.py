"""The sustained rate of a client in the daemon's place, measured as the daemon's is."""

from dev.bench.bed import Bed
from dev.bench.client import ClientCounts, ClientOptions
from dev.bench.plan import Plan, Tell
from dev.bench.results import Measured
from dev.bench.sustained import sustain
from dev.bench.worker import working
from dev.house import eventually

NAME = "client"
"""Of its process in the figures."""


async def sustain_client(place: Bed, module: str, plan: Plan, window: int, tell: Tell) -> tuple[Measured, int, int]:
    """Its sustained rate, how many messages the broker acknowledged, and how many it says it has dealt with."""
    options = ClientOptions(place.broker.port, place.database_url)
    async with working(module, options, ClientCounts(), place.folder) as client:
        place.watch(NAME, client.pid)

        async def subscribed() -> bool:
            return client.latest.subscribed

        async def done() -> int:
            return client.latest.done

        await eventually(subscribed)
        measured, acknowledged = await sustain(
            place, plan.fleet, plan, plan.seconds_elsewhere, done, NAME, window, tell
        )
        counts = await client.end()
    return measured, acknowledged, counts.done
