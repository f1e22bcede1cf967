"""What was measured: one record for each run of each step, with everything in it that the page may want."""

import statistics
from collections.abc import Iterable

from msgspec import Struct

from dev.bench.plan import PartName, Plan


class Step(Struct, frozen=True, order=True):
    """One thing that is measured, once in each run."""

    part: PartName
    """`sustained`, `drain` and so on, as `--only` names them."""
    name: str
    """Which of that part: a number of devices, a rate, a rival."""


class Check(Struct, frozen=True):
    """What had to be equal, and whether it was."""

    what: str
    expected: int
    found: int

    @property
    def holds(self) -> bool:
        """Whether it is as it should be."""
        return self.expected == self.found


class Measured(Struct):
    """What came of one run of one step."""

    values: dict[str, float]
    """By name, with the unit last; CPU as `cpu_us PROCESS`."""
    checks: list[Check] = []
    per_second: list[int] = []
    """Readings stored in each second that was measured, where it was looked at every second."""


class Record(Struct):
    """One run of one step, and which."""

    step: Step
    run: int
    measured: Measured


class Spread(Struct, frozen=True):
    """One value over the runs."""

    median: float
    least: float
    greatest: float


class Results(Struct):
    """Everything that the page is made of."""

    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, str]
    plan: Plan
    records: list[Record]

    def spread(self, step: Step, value: str) -> Spread | None:
        """A value of a step over the runs; None where it was not measured."""
        return spread_of(found.values[value] for found in self.of(step) if value in found.values)

    def of(self, step: Step) -> list[Measured]:
        """The runs of a step."""
        return [record.measured for record in self.records if record.step == step]

    def ratio(self, of: Step, to: Step, value: str) -> Spread | None:
        """How many times the value of one step is that of the other in the same run, over the runs that have both."""
        by_run: dict[int, dict[Step, float]] = {}
        for record in self.records:
            if value in record.measured.values:
                by_run.setdefault(record.run, {})[record.step] = record.measured.values[value]
        return spread_of(found[of] / found[to] for found in by_run.values() if of in found and found.get(to))

    def names(self, part: PartName) -> list[str]:
        """The names of a part's steps, in the order in which they were first measured."""
        return list(dict.fromkeys(record.step.name for record in self.records if record.step.part == part))

    def failures(self) -> list[tuple[Record, Check]]:
        """The checks that do not hold."""
        return [(record, check) for record in self.records for check in record.measured.checks if not check.holds]


def spread_of(values: Iterable[float]) -> Spread | None:
    """Median, least and greatest; None of nothing."""
    ordered = sorted(values)
    return Spread(statistics.median(ordered), ordered[0], ordered[-1]) if ordered else None


def quantile(ordered: list[float], share: float) -> float:
    """The value that this share of the sorted values does not exceed."""
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]
