"""What the charts of one device show, step by step.

Rule: the energy of a step is what `sql.analytics` or `sql.measure` says of it, and nothing else. Here is only where
steps begin and end, and what gauges showed on average, since the analytics have no need of that.

| window | step |
| --- | --- |
| up to 26 hours | 5 minutes, or more where readings are further apart |
| up to 31 days | an hour |
| longer | a day |

Steps are those of UTC, so that the rollups have them; the first and the last one are cut to the window.

A gauge by hour or day comes from the rollups as they are: a late reading is in its energy at once, and in its gauges
when it has been rolled up, some minutes later.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeAlias, TypeVar

from msgspec import Struct

from sql.analytics import Performance, Rules, performances
from sql.cells import Total
from sql.devices import EnergyMode
from sql.hours import DAY, HOUR, hour_ceiling, hour_floor
from sql.measure import Piece, measure, rollup_state
from sql.pool import Connection
from sql.store import METER, Kind

T = TypeVar("T")

MINUTE = timedelta(minutes=1)
STEPS = (
    (26 * HOUR, (5 * MINUTE, 15 * MINUTE, HOUR)),
    (31 * DAY, (HOUR,)),
    (timedelta.max, (DAY,)),
)
"""The longest window, and the steps that it can have, the first that is not too fine."""
READINGS_A_STEP_MIN = 2
"""Of a device that is there all the time: with fewer, some steps have none and their neighbours twice as much."""
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

Span: TypeAlias = tuple[datetime, datetime]


class Steps(Struct, Generic[T], frozen=True):
    """A window by step, each with what was found in it."""

    step: timedelta
    spans: list[Span]
    found: list[T]


def spans(start: datetime, end: datetime, step: timedelta) -> list[Span]:
    """The steps of [start, end), the first and the last one cut to it."""
    cut: list[Span] = []
    while start < end:
        behind = min(end, step_floor(start, step) + step)
        cut.append((start, behind))
        start = behind
    return cut


def step_floor(moment: datetime, step: timedelta) -> datetime:
    """The beginning of the step in which the moment lies."""
    return moment - (moment - _EPOCH) % step


async def vehicle_steps(
    connection: Connection, vehicle_id: str, start: datetime, end: datetime, rules: Rules
) -> Steps[Performance] | None:
    """The performance of a vehicle by step, or None where nobody knows the vehicle."""

    async def find(cut: list[Span]) -> list[Performance]:
        return await performances(connection, vehicle_id, cut, rules) or []

    def is_too_fine(step: timedelta, cut: list[Span], found: list[Performance]) -> bool:
        pairs = list(zip(cut, found, strict=True))
        return _is_too_fine(
            step, sum(one.samples for one in found), sum(_length_s(span) * one.vehicle_coverage for span, one in pairs)
        ) or _is_too_fine(
            step,
            sum(one.meter_samples for one in found),
            sum(_length_s(span) * one.meter_coverage for span, one in pairs),
        )

    steps = await _first_that_fits(start, end, find, is_too_fine)
    return steps if steps.found else None


async def meter_steps(
    connection: Connection, meter_id: str, energy_mode: EnergyMode, start: datetime, end: datetime, power_max_kw: float
) -> Steps[Total]:
    """What a meter counted by step."""

    async def find(cut: list[Span]) -> list[Total]:
        pieces = [Piece(meter_id, energy_mode, *span) for span in cut]
        return await measure(connection, METER, pieces, power_max_kw)

    def is_too_fine(step: timedelta, cut: list[Span], found: list[Total]) -> bool:
        return _is_too_fine(step, sum(one.samples for one in found), sum(one.covered_s for one in found))

    return await _first_that_fits(start, end, find, is_too_fine)


async def gauges(
    connection: Connection, kind: Kind, device_id: str, start: datetime, end: datetime, step: timedelta
) -> list[Mapping[str, float] | None]:
    """What a device showed in each step of [start, end) on average, by the history's column; None: it was silent."""
    hours_start, hours_end = start, start
    if step >= HOUR:
        rolled_through = (await rollup_state(connection, kind)).rolled_through
        hours_start = min(hour_ceiling(start), end)
        hours_end = max(hours_start, min(hour_floor(end), rolled_through))
    rows = await connection.fetch(kind.query("average_gauges"), device_id, start, end, hours_start, hours_end, step)
    shown = {row["starts"]: {gauge: row[gauge] for gauge in kind.gauges} for row in rows}
    return [shown.get(step_floor(begins, step)) for begins, _ in spans(start, end, step)]


async def _first_that_fits(
    start: datetime,
    end: datetime,
    find: Callable[[list[Span]], Awaitable[list[T]]],
    is_too_fine: Callable[[timedelta, list[Span], list[T]], bool],
) -> Steps[T]:
    possible = next(steps for longest, steps in STEPS if end - start <= longest)
    for step in possible:
        cut = spans(start, end, step)
        found = await find(cut)
        if step == possible[-1] or not found or not is_too_fine(step, cut, found):
            break
    return Steps(step, cut, found)


def _is_too_fine(step: timedelta, samples: int, covered_s: float) -> bool:
    """Whether a device sends fewer readings a step than it takes, while it sends at all."""
    return samples * step.total_seconds() < READINGS_A_STEP_MIN * covered_s


def _length_s(span: Span) -> float:
    return (span[1] - span[0]).total_seconds()
