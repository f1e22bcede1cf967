"""The parts of the benchmark in the order in which they are measured: the table that everything else goes by."""

from collections.abc import Awaitable, Callable

from msgspec import Struct

from dev.bench import ceiling, drain, latency, rivals, sustained
from dev.bench.bed import Bed
from dev.bench.plan import PartName, Plan, Tell
from dev.bench.results import Measured, Step

START_S = 8.0
"""What each step takes besides: a new stack, counting, the end."""
STORED_PER_S, PUBLISHED_PER_S = 30_000, 60_000
"""Guesses, for the estimate of how long it will take."""


class Part(Struct, frozen=True):
    """One part."""

    measure: Callable[[Bed, str, Plan, Tell], Awaitable[Measured]]
    names: Callable[[Plan], list[str]]
    seconds: Callable[[Plan, str], float]
    """How long a step takes, about."""


def _interval_s(plan: Plan, _: str) -> float:
    return plan.warm_up_s + plan.seconds_elsewhere


def _sustained_s(plan: Plan, devices: str) -> float:
    return max(plan.warm_up_s, int(devices) / STORED_PER_S) + plan.seconds


def _drain_s(_: Plan, messages: str) -> float:
    return int(messages) / STORED_PER_S + int(messages) / PUBLISHED_PER_S


PARTS: dict[PartName, Part] = {
    "sustained": Part(sustained.measure, lambda plan: list(map(str, plan.devices)), _sustained_s),
    "drain": Part(drain.measure, lambda plan: [str(plan.backlog)], _drain_s),
    "latency": Part(latency.measure, lambda plan: list(map(str, plan.rates)), _interval_s),
    "rivals": Part(rivals.measure, lambda _: list(rivals.RIVALS), _interval_s),
    "ceiling": Part(ceiling.measure, lambda _: list(ceiling.CEILINGS), _interval_s),
}


def steps(plan: Plan) -> list[Step]:
    """All that is measured in one run."""
    return [
        Step(name, step) for name, part in PARTS.items() if name in (plan.only or PARTS) for step in part.names(plan)
    ]


def seconds_of(plan: Plan, step: Step) -> float:
    """How long a step takes, about."""
    return START_S + PARTS[step.part].seconds(plan, step.name)
