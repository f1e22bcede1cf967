"""The rivals, measured as the daemon is: sustained, beside the same load. See `dev.bench.rival` for what they are.

The load is at most a round of the fleet ahead of them, not the daemon's window: that is seconds of work for a rival.
They are not given a backlog: behind 100,000 messages aiomqtt's `subscribe` times out, for its answer waits behind them.
"""

from dev.bench.bed import Bed
from dev.bench.plan import Plan, Tell
from dev.bench.results import Measured
from dev.bench.sustained_client import sustain_client

RIVALS = {"aiomqtt, a transaction each": "rival_single", "aiomqtt, batches": "rival_batches"}


async def measure(place: Bed, name: str, plan: Plan, tell: Tell) -> Measured:
    """A rival's sustained rate."""
    await place.without_daemon()
    measured, acknowledged, _ = await sustain_client(place, RIVALS[name], plan, plan.fleet, tell)
    measured.checks += await place.check(acknowledged, plan.fleet)
    return measured
