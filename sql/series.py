"""The performance of a vehicle by local hour or local day.

Rule: a point is what `sql.analytics` says of its bucket, and nothing else. Here is only where buckets begin and end.

| bucket | is |
| --- | --- |
| hour | as long as the local clock shows one hour at one offset from UTC: an hour that comes twice is two |
| day | from the first moment of a local date to that of the next one: 23 to 25 hours; a date left out is none |

The first and the last one are cut to the window. Hours are added in UTC: added to a local time they ignore offsets.
"""

from bisect import bisect_left
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from typing import Literal, TypeAlias
from zoneinfo import ZoneInfo

from msgspec import Struct, field

from sql.analytics import Performance, Rules, performances
from sql.fleet import Verdict
from sql.hours import DAY, HOUR
from sql.pool import Connection

Step: TypeAlias = Literal["hour", "day"]

DAYS_DEFAULT = 30
BUCKETS_A_TURN = 500
"""Then others have theirs: a year of hours is a lot to compute in one piece."""
SECOND = timedelta(seconds=1)


class Point(Struct, frozen=True, rename="camel", kw_only=True):
    """The performance in one bucket [start, end)."""

    start: datetime = field(name="from")
    end: datetime = field(name="to")
    ac_kwh: float
    dc_kwh: float
    loss_kwh: float | None
    efficiency: float | None
    avg_battery_temp: float | None
    samples: int
    meter_samples: int
    coverage: float
    status: Verdict
    dc_kwh_unlinked: float


class PerformanceSeries(Struct, frozen=True, rename="camel", kw_only=True):
    """The performance of one vehicle in the window [start, end) by bucket, also those without readings."""

    vehicle_id: str
    start: datetime = field(name="from")
    end: datetime = field(name="to")
    step: Step
    tz: str
    points: list[Point]


async def series(
    connection: Connection, vehicle_id: str, start: datetime, end: datetime, rules: Rules, step: Step, zone: ZoneInfo
) -> PerformanceSeries | None:
    """The vehicle's performance in each bucket of [start, end), or None where nobody knows the vehicle."""
    spans = list(buckets(start, end, step, zone))
    points: list[Point] = []
    for first in range(0, len(spans), BUCKETS_A_TURN):
        answers = await performances(connection, vehicle_id, spans[first : first + BUCKETS_A_TURN], rules)
        if answers is None:
            return None
        points += map(_point, answers)
    return PerformanceSeries(vehicle_id=vehicle_id, start=start, end=end, step=step, tz=zone.key, points=points)


def default_start(end: datetime, step: Step, zone: ZoneInfo) -> datetime:
    """Where a window begins that is not said: a day before its end, or with the first of 30 local days."""
    if step == "hour":
        return end - DAY
    last = (end - SECOND).astimezone(zone).date()
    return datetime.combine(last - (DAYS_DEFAULT - 1) * DAY, time(), zone).astimezone(UTC)


def buckets(start: datetime, end: datetime, step: Step, zone: ZoneInfo) -> Iterator[tuple[datetime, datetime]]:
    """The hours or days of the local clock in [start, end), the first and the last one cut to it; times in UTC."""
    for seam in _hours(start, zone) if step == "hour" else _days(start, zone):
        if seam >= end:
            break
        if start < seam:
            yield start, seam
            start = seam
    yield start, end


def _days(start: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    """Where local dates begin. Where midnight is left out, Python takes the moment at which the clock is moved."""
    date = start.astimezone(zone).date()
    while True:
        date += DAY
        yield datetime.combine(date, time(), zone).astimezone(UTC)


def _hours(start: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    """Where the local clock shows a full hour, or is moved."""
    start = start.replace(microsecond=0)
    while True:
        local = start.astimezone(zone)
        start = _until_moved(start, start + HOUR - timedelta(minutes=local.minute, seconds=local.second), zone)
        yield start


def _until_moved(start: datetime, end: datetime, zone: ZoneInfo) -> datetime:
    """The first moment in (start, end] with another offset than `start`, or `end`."""

    def is_moved(seconds: int) -> bool:
        return (start + seconds * SECOND).astimezone(zone).utcoffset() != offset

    offset = start.astimezone(zone).utcoffset()
    length_s = (end - start) // SECOND
    return start + bisect_left(range(length_s), True, key=is_moved) * SECOND if is_moved(length_s) else end


def _point(answer: Performance) -> Point:
    return Point(
        start=answer.start,
        end=answer.end,
        ac_kwh=answer.ac_kwh,
        dc_kwh=answer.dc_kwh,
        loss_kwh=answer.loss_kwh,
        efficiency=answer.efficiency,
        avg_battery_temp=answer.avg_battery_temp,
        samples=answer.samples,
        meter_samples=answer.meter_samples,
        coverage=answer.coverage,
        status=answer.status,
        dc_kwh_unlinked=answer.dc_kwh_unlinked,
    )
