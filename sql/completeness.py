"""How completely a device reported: what came, what was expected from its own cadence, and its gaps.

- A **step** is the time from a reading to the next; it belongs to the UTC hour in which it ends.
- A **block** is as many hours with readings as have 6 steps: one of a device that sends each 10 minutes, six of one
  that sends each hour. It is **steady** where three quarters of its steps are within a quarter of their median. Where
  it is not, the next begins an hour later, else behind it. The last 100 steps before the window are a block too.
- The **cadence** of an hour is the median of its block where that is steady, else that of the last steady block before,
  else that of the first one after. So a device that is silent or flaky keeps the cadence it had, and one that changes
  it has the new one from the first steady block on. Where no block is steady, the cadence is the median of the first
  six steps of each hour and of those before the window, if there are three and more than half of them are near it. Else
  there is none, and nothing can be expected.
- After each reading the next are **due** one cadence later, two, and so on. One is **missing** where nothing came until
  half a cadence after it was due. The longest cadence of the hour in which the silence ends and of the hours beside it
  counts, so that a change within an hour makes no gap.
- **Expected** is what came and what is missing. Before its first reading ever a device misses nothing.
- A **gap** is two readings or more that are missing in a row: a silence of at least 2.5 cadences.

Nothing is stored, so a late reading repairs the past. The SQL measures each hour; what lies over the edge of an hour is
computed here.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import ceil, floor
from statistics import median_low
from typing import TypeAlias

from msgspec import Struct, field

from sql.devices import get_status, list_readings
from sql.pool import Connection, transaction
from sql.store import Kind

HOUR = timedelta(hours=1)
REACH = timedelta(days=1)
"""How far beyond the window its neighbouring readings are looked for."""
LONG_AGO = datetime(1999, 12, 31, tzinfo=UTC)
"""No reading is older."""
STEPS_BEFORE = 100
BLOCK_STEPS = 6
POOL_STEPS = 3
NEAR = 0.25
STEADY = 0.75
GAP_READINGS = 2
GAPS_SHOWN_MAX = 100
DIGITS = 6


class Hour(Struct, frozen=True, rename="camel"):
    """The part of a UTC hour that lies in the window. `expected` and `cadence_s` are None where no cadence is known."""

    start: datetime = field(name="from")
    end: datetime = field(name="to")
    came: int
    expected: int | None
    cadence_s: float | None


class Gap(Struct, frozen=True):
    """A silence, cut to the window: `missing` readings were due in it and did not come."""

    start: datetime = field(name="from")
    end: datetime = field(name="to")
    missing: int


class Completeness(Struct, frozen=True, rename="camel", kw_only=True):
    """How completely one device reported in the window [start, end)."""

    id: str
    start: datetime = field(name="from")
    end: datetime = field(name="to")
    came: int
    expected: int | None
    completeness: float | None
    """came / expected; None where nothing was expected or nobody can say what."""
    cadence_s: float | None
    """At the end of the window."""
    last_reading_at: datetime
    """The newest reading ever, also where it is not in the window."""
    hours: list[Hour]
    gaps: list[Gap]
    """The longest, in the order of time."""
    gaps_omitted: int


class Measured(Struct, frozen=True):
    """What the SQL says of the readings and steps of one hour."""

    hour: datetime
    came: int
    first_at: datetime
    last_at: datetime
    steps: int
    median_s: float | None
    near: int
    """How many steps are near the median."""
    sample_s: list[float]
    """The first steps; all of them where they are fewer than a block has."""


class Silences(Struct, frozen=True):
    """What the SQL says is missing between readings of one hour."""

    hour: datetime
    missing: int
    gaps: int
    gap_starts: list[datetime]
    gap_ends: list[datetime]


class Around(Struct, frozen=True):
    """The readings beside the window, and the time of the question."""

    before: list[datetime]
    """The last ones before it, in the order of time; none: the device is new."""
    after: datetime | None
    now: datetime


class Silence(Struct, frozen=True):
    """Nothing came after the reading at `start` until `end`; readings were due each `cadence_s`."""

    start: datetime
    end: datetime
    cadence_s: float

    @property
    def missing(self) -> int:
        """How many readings are missing."""
        return max(0, floor((self.end - self.start).total_seconds() / self.cadence_s - 0.5))

    def missing_before(self, moment: datetime) -> int:
        """How many of them were due before a moment."""
        due = ceil((moment - self.start).total_seconds() / self.cadence_s) - 1
        return max(0, min(due, self.missing))


_ByHour: TypeAlias = Mapping[datetime, Measured]


async def completeness(
    connection: Connection, kind: Kind, device_id: str, start: datetime, end: datetime, now: datetime
) -> Completeness | None:
    """How completely the device reported in [start, end), or None where it was never seen."""
    async with transaction(connection, isolation="repeatable_read", readonly=True):
        status = await get_status(connection, kind, device_id)
        if status is None:
            return None
        around = await _around(connection, kind, device_id, start, end, now)
        rows = await connection.fetch(kind.query("measure_hours"), device_id, start, end, NEAR, BLOCK_STEPS)
        measured = {row["hour"]: Measured(**row) for row in rows}
        hours = hours_of(start, end)
        cadences = cadences_of(hours, measured, steps_of(around.before))
        inner = await _silences(connection, kind, device_id, start, end, hours, longest_beside(cadences))
    return judge(device_id, start, end, status.ts, around, hours, measured, cadences, inner)


async def _around(
    connection: Connection, kind: Kind, device_id: str, start: datetime, end: datetime, now: datetime
) -> Around:
    """Mostly a look at the days beside the window; only for a device that was silent then, or is new, at all before."""
    statement = kind.query("find_times_before")
    for earliest in (start - REACH, LONG_AGO):
        if rows := await connection.fetch(statement, device_id, earliest, start, STEPS_BEFORE + 1):
            break
    following = await list_readings(connection, kind, device_id, end, end + REACH, after=None, limit=1)
    return Around([row["ts"] for row in reversed(rows)], following[0].ts if following else None, now)


async def _silences(
    connection: Connection,
    kind: Kind,
    device_id: str,
    start: datetime,
    end: datetime,
    hours: list[datetime],
    cadences: list[float],
) -> list[Silences]:
    if not cadences:
        return []
    rows = await connection.fetch(
        kind.query("measure_silences"), device_id, start, end, hours, cadences, GAP_READINGS, GAPS_SHOWN_MAX
    )
    return [Silences(**row) for row in rows]


# Pure from here on.


def hours_of(start: datetime, end: datetime) -> list[datetime]:
    """The UTC hours that [start, end) touches, by their beginnings."""
    first = start.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return [first + n * HOUR for n in range(ceil((end - first) / HOUR))]


def steps_of(times: Sequence[datetime]) -> list[float]:
    """The seconds from each time to the next."""
    return [(after - before).total_seconds() for before, after in pairwise(times)]


def cadences_of(hours: list[datetime], measured: _ByHour, steps_before: list[float]) -> list[float]:
    """The cadence of each hour; empty where there is none."""
    before = _block([], steps_before)
    steady = [block for block in (before, *_blocks(measured.values())) if block.is_steady]
    current = steady[0].median_s if steady else _pooled([*steps_before, *_samples(measured.values())])
    if current is None:
        return []
    own = {hour: block.median_s for block in steady for hour in block.hours}
    cadences = []
    for hour in hours:
        current = own.get(hour, current)
        cadences.append(current)
    return cadences


def longest_beside(cadences: list[float]) -> list[float]:
    """Of each hour, the longest cadence of it and the hours beside it."""
    return [max(cadences[max(0, n - 1) : n + 2]) for n in range(len(cadences))]


def judge(
    device_id: str,
    start: datetime,
    end: datetime,
    last_reading_at: datetime,
    around: Around,
    hours: list[datetime],
    measured: _ByHour,
    cadences: list[float],
    inner: list[Silences],
) -> Completeness:
    """The answer, from what was measured. The hours of `measured` are in the order of time."""
    longest = dict(zip(hours, longest_beside(cadences), strict=False))
    edges = list(_over_edges(measured, longest, around)) if cadences else []
    missing = Counter({one.hour: one.missing for one in inner})
    for silence in edges:
        for hour in hours_of(max(start, silence.start), min(end, silence.end)):
            missing[hour] += _missing_in(silence, max(start, hour), min(end, hour + HOUR))
    listed = [
        Hour(
            start=max(start, hour),
            end=min(end, hour + HOUR),
            came=(came := measured[hour].came if hour in measured else 0),
            expected=came + missing[hour] if cadences else None,
            cadence_s=cadences[n] if cadences else None,
        )
        for n, hour in enumerate(hours)
    ]
    over_edges = [gap for silence in edges if (gap := _gap(silence, start, end))]
    gaps = over_edges + [gap for one in inner for gap in _inner_gaps(one, longest[one.hour])]
    gaps_seen = len(over_edges) + sum(one.gaps for one in inner)
    return _completeness(device_id, start, end, last_reading_at, listed, gaps, gaps_seen)


def _completeness(
    device_id: str,
    start: datetime,
    end: datetime,
    last_reading_at: datetime,
    hours: list[Hour],
    gaps: list[Gap],
    gaps_seen: int,
) -> Completeness:
    came = sum(hour.came for hour in hours)
    expected = None if hours[0].expected is None else sum(hour.expected or 0 for hour in hours)
    shown = sorted(gaps, key=lambda gap: (gap.start - gap.end, gap.start))[:GAPS_SHOWN_MAX]
    return Completeness(
        id=device_id,
        start=start,
        end=end,
        came=came,
        expected=expected,
        completeness=round(came / expected, DIGITS) if expected else None,
        cadence_s=hours[-1].cadence_s,
        last_reading_at=last_reading_at,
        hours=hours,
        gaps=sorted(shown, key=lambda gap: gap.start),
        gaps_omitted=gaps_seen - len(shown),
    )


class _Block(Struct, frozen=True):
    hours: list[datetime]
    steps: int
    near: int
    median_s: float

    @property
    def is_steady(self) -> bool:
        """Whether it says what the cadence is."""
        return self.steps >= BLOCK_STEPS and self.near >= STEADY * self.steps


def _blocks(measured: Iterable[Measured]) -> Iterator[_Block]:
    few: list[Measured] = []
    for one in measured:
        if one.steps >= BLOCK_STEPS:
            few = []
            yield _Block([one.hour], one.steps, one.near, one.median_s or 0.0)
            continue
        few.append(one)
        while (block := _block_of(few)).steps >= BLOCK_STEPS:
            yield block
            few = [] if block.is_steady else few[1:]


def _block_of(few: list[Measured]) -> _Block:
    return _block([one.hour for one in few], list(_samples(few)))


def _block(hours: list[datetime], steps_s: list[float]) -> _Block:
    median_s = median_low(steps_s or [0.0])
    near = sum(abs(step_s - median_s) <= NEAR * median_s for step_s in steps_s)
    return _Block(hours, len(steps_s), near, median_s)


def _samples(measured: Iterable[Measured]) -> Iterator[float]:
    for one in measured:
        yield from one.sample_s


def _pooled(steps_s: list[float]) -> float | None:
    """The cadence where no block is steady."""
    pool = _block([], steps_s)
    return pool.median_s if pool.steps >= POOL_STEPS and 2 * pool.near > pool.steps else None


def _over_edges(measured: _ByHour, longest: Mapping[datetime, float], around: Around) -> Iterator[Silence]:
    """The silences over the edge of an hour, the last of which may go on."""
    previous = around.before[-1] if around.before else None
    for one in measured.values():
        if previous:
            yield Silence(previous, one.first_at, longest[one.hour])
        previous = one.last_at
    if previous:
        yield Silence(previous, around.after or around.now, list(longest.values())[-1])


def _missing_in(silence: Silence, start: datetime, end: datetime) -> int:
    return silence.missing_before(end) - silence.missing_before(start)


def _gap(silence: Silence, start: datetime, end: datetime) -> Gap | None:
    missing = _missing_in(silence, start, end)
    is_gap = silence.missing >= GAP_READINGS and missing > 0
    return Gap(max(start, silence.start), min(end, silence.end), missing) if is_gap else None


def _inner_gaps(silences: Silences, cadence_s: float) -> Iterator[Gap]:
    for start, end in zip(silences.gap_starts, silences.gap_ends, strict=True):
        yield Gap(start, end, Silence(start, end, cadence_s).missing)
