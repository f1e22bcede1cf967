"""What is measured, how often and for how long."""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

from msgspec import Struct

Tell: TypeAlias = Callable[[str], None]
"""Takes a line for whoever watches."""


PartName = Literal["sustained", "drain", "latency", "rivals", "ceiling"]
PART_NAMES: tuple[PartName, ...] = get_args(PartName)


class Plan(Struct, frozen=True, kw_only=True):
    """The defaults are those of a full run."""

    runs: int = 3
    seconds: int = 60
    """Of each interval in which the sustained rate is measured."""
    seconds_elsewhere: int = 20
    """Of each interval of the other parts."""
    warm_up_s: float = 10
    """At least, before it; and until each device was seen once."""
    devices: tuple[int, ...] = (10_000, 100_000, 1_000_000, 2_000_000)
    fleet: int = 10_000
    """Devices in all other parts."""
    backlog: int = 1_000_000
    rates: tuple[int, ...] = (167, 5_000, 20_000)
    """Of messages a second, at which the latency is measured. 167 is what 10,000 devices send at one a minute."""
    only: tuple[PartName, ...] = ()
    """These parts; none = all."""


QUICK = Plan(runs=1, seconds=8, seconds_elsewhere=8, warm_up_s=3, devices=(10_000, 100_000), backlog=200_000)
"""A few minutes: enough to see that it works, not to believe the figures."""
