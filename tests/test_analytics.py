"""Energy, coverage and verdicts: cases computed by hand, a reference in plain Python, and the plan of the queries."""

import asyncio
import itertools
import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct, to_builtins

from sql.analytics import Flags, FleetPerformance, Performance, Rules, fleet, performance
from sql.devices import EnergyMode, set_energy_mode
from sql.links import pair
from sql.store import METER, VEHICLE
from tests.conftest import Connect
from tests.history import START, Point, minute, numbers, series, store

RULES = Rules()


async def measure(
    database: asyncpg.Connection, vehicle_id: str, start: float, end: float, rules: Rules = RULES
) -> Performance:
    answer = await performance(database, vehicle_id, minute(start), minute(end), rules)
    assert answer is not None
    return answer


@pytest.fixture
async def database(shared: asyncpg.Connection) -> asyncpg.Connection:
    """The database of this file, emptied."""
    tables = "device, vehicle_meter_link, meter_status, vehicle_status, meter_reading, vehicle_reading"
    await shared.execute(f"TRUNCATE {tables}")
    return shared


class Case(Struct, frozen=True):
    """A vehicle's readings, one a minute from `first` on, and what they add up to in the minutes [0, end)."""

    name: str
    energy_mode: EnergyMode
    values: list[float]
    kwh: float
    flags: Flags = Flags()
    first: int = -1
    end: int = 60
    every: int = 1
    power_max_kw: float = 500


CASES = [
    Case("amounts are added", "interval", [1, 2, 3], 6, first=0),
    Case("an amount at the beginning counts, one at the end does not", "interval", [8, 1, 2, 9], 3, first=-1, end=2),
    Case("amounts may be as large as they like", "interval", [5000, 0, 7], 5007, first=0),
    Case("a register counts from the last reading before", "register", [100, 100.5, 101], 1),
    Case("without one, from the first reading", "register", [100, 100.5, 101], 1, first=0),
    Case("and that may be days old", "register", [100, 107, 108], 8, first=-1441, every=1442, end=2000),
    Case("but not more than a month", "register", [100, 107, 108], 0, first=-45_000, every=45_010, end=46_000),
    Case("a reading at the end is outside", "register", [100, 101, 103], 1, end=1),
    Case("one reading is nothing", "register", [100], 0, first=0),
    Case("standing still is nothing", "register", [100, 100, 100], 0),
    Case("a reset begins anew", "register", [100, 101, 0.4, 0.9], 1 + 0.4 + 0.5, Flags(resets=1)),
    Case("a reset may be seen late", "register", [100, 101, 5, 5.5], 1 + 5 + 0.5, Flags(resets=1)),
    Case("two resets", "register", [100, 0, 0.5, 0, 0.2, 0.3], 0.5 + 0.3, Flags(resets=2)),
    Case("the first reading may be the reset", "register", [100, 0.25, 0.5], 0.5, Flags(resets=1)),
    Case("a dip that comes back", "register", [100, 100.5, 100.1, 100.3, 100.5, 101], 1, Flags(dips=1)),
    Case("a dip of some steps", "register", [100, 99.5, 99.4, 99.8, 100.2], 0.2, Flags(dips=2)),
    Case("a dip that began before", "register", [100, 99.5, 100, 100.25], 0.25, first=-2),
    Case("0.9 of it is a dip", "register", [100, 90, 90.5, 91], 0, Flags(dips=1)),
    Case("less than 0.9 is a reset", "register", [10, 8.98, 8.99], 8.99, Flags(resets=1), power_max_kw=6000),
    Case("to zero and back", "register", [100, 100.1, 0, 100.2, 100.3], 0.3, Flags(glitches=1)),
    Case("three times zero and back", "register", [100, 100.1, 0, 0, 0, 100.2, 100.3], 0.3, Flags(glitches=3)),
    Case("zero, back below the level", "register", [100, 0, 99.9, 100.2], 0.2, Flags(glitches=1, dips=1)),
    Case("to zero and back, slowly read", "register", [100, 102, 0, 104], 4, Flags(glitches=1), first=-15, every=15),
    Case("zero as the base", "register", [100, 0, 100.2, 100.3], 0.3, first=-2),
    Case("zero as the last", "register", [100, 100.1, 0, 100.2], 0.1, Flags(glitches=1), end=2),
    Case(
        "four times zero is too long for a glitch: a reset, and the way back is impossible",
        "register",
        [100, 100.1, 0, 0, 0, 0, 100.2, 100.3],
        0.1 + 0.1,
        Flags(resets=1, impossible_steps=1, glitches=2),
    ),
    Case("a jump that stays", "register", [100, 1100, 1100.5], 0.5, Flags(impossible_steps=1)),
    Case("a jump that goes", "register", [10000, 11000, 10000.5, 10001], 1, Flags(impossible_steps=1)),
    Case("a jump after a zero", "register", [100, 0, 1100, 1100.5], 0.5, Flags(impossible_steps=1, glitches=1)),
    Case("just possible", "register", [100, 101, 102], 2, power_max_kw=60),
    Case("just impossible", "register", [100, 101, 102.001], 1, Flags(impossible_steps=1), power_max_kw=60),
    Case("much after a long time", "register", [100, 107.5, 115], 15, first=-15, every=15, power_max_kw=30),
    Case("a reset to an impossible value", "register", [100, 50, 50.5], 0.5, Flags(resets=1, impossible_steps=1)),
    Case("a session grows", "session", [0, 0.2, 0.4], 0.4),
    Case("and restarts", "session", [0, 0.2, 0.4, 0, 0.2, 0.5], 0.4 + 0.5, Flags(resets=1)),
    Case("without a zero too", "session", [5, 5.2, 0.3, 0.6], 0.2 + 0.6, Flags(resets=1)),
    Case("a session dips", "session", [5, 5.2, 5.1, 5.3], 0.3, Flags(dips=1)),
    Case("a session to zero and back", "session", [5, 5.1, 0, 5.2, 5.3], 0.3, Flags(glitches=1)),
    Case("a longer one follows", "session", [1, 2, 0, 2.75, 5.5], 1 + 5.5, Flags(resets=1), first=-15, every=15),
    Case("a session jumps", "session", [1, 900, 900.1], 0.1, Flags(impossible_steps=1)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.energy_mode}: {case.name}")
async def test_energy_by_mode(shared: asyncpg.Connection, case: Case) -> None:
    vehicle_id = f"v{next(numbers)}"
    await store(shared, VEHICLE, vehicle_id, series(case.values, case.first, case.every))
    await set_energy_mode(shared, VEHICLE, vehicle_id, case.energy_mode)
    await pair(shared, vehicle_id, f"m{vehicle_id}", minute(-10_000), None)

    answer = await measure(shared, vehicle_id, 0, case.end, Rules(power_max_kw=case.power_max_kw))

    assert answer.dc_kwh == pytest.approx(case.kwh, abs=1e-6)
    assert answer.flags == case.flags
    assert answer.samples == sum(0 <= at < case.end for at, _ in series(case.values, case.first, case.every))
    assert answer.energy_mode == case.energy_mode


@pytest.mark.parametrize("case", [case for case in CASES if case.flags != Flags()], ids=lambda case: case.name)
async def test_meters_follow_the_same_rules(shared: asyncpg.Connection, case: Case) -> None:
    meter_id = f"m{next(numbers)}"
    await store(shared, METER, meter_id, series(case.values, case.first, case.every))
    await set_energy_mode(shared, METER, meter_id, case.energy_mode)
    await pair(shared, f"v{meter_id}", meter_id, minute(-10_000), None)

    answer = await measure(shared, f"v{meter_id}", 0, case.end, Rules(power_max_kw=case.power_max_kw))

    assert answer.ac_kwh == pytest.approx(case.kwh, abs=1e-6)
    assert answer.flags == case.flags
    assert [share.energy_mode for share in answer.meters] == [case.energy_mode]


# A reference in plain Python.


def reference(mode: EnergyMode, points: list[Point], end: float, power_max_kw: float) -> float:
    """What docs/energy.md says, for readings in the order of time; the window is [0, end)."""
    if mode == "interval":
        return sum(kwh for at, kwh in points if 0 <= at < end)
    kept = [points[n] for n in range(len(points)) if not is_fault(mode, points, n, power_max_kw)]
    total = 0.0
    levels = kept[:1]  # of the segment
    for (then, previous), (at, kwh) in itertools.pairwise(kept):
        is_reset = kwh < 0.9 * previous
        level = max([previous, *(value for when, value in levels if when >= at // 60 * 60 - 60)])
        step = kwh if is_reset else max(0.0, kwh - level)
        levels = [(at, kwh)] if is_reset else [*levels, (at, kwh)]
        if 0 <= at < end and step <= power_max_kw * (at - then) / 60 + 1e-9:
            total += step
    return total


def is_fault(mode: EnergyMode, points: list[Point], n: int, power_max_kw: float) -> bool:
    """Whether the reading is a glitch, or a jump that goes."""
    at, kwh = points[n]
    before = [value for when, value in points[max(0, n - 3) : n] if when >= at - 1440]
    after = [value for when, value in points[n + 1 : n + 4] if when <= at + 60]
    if not before or not after:
        return False
    if mode == "register":
        is_glitch = kwh < 0.9 * max(before) and max(after) >= 0.9 * max(before)
    else:
        is_glitch = kwh < 0.9 * before[-1] and before[-1] <= after[0] <= 1.1 * before[-1]
    possible_kwh = power_max_kw * (at - points[n - 1][0]) / 60 + 1e-9
    return is_glitch or (kwh - max(before) > possible_kwh and after[0] < kwh)


def timed(steps: list[tuple[int, float]]) -> list[Point]:
    """Readings from gaps and values; the first may lie before the window."""
    times = itertools.accumulate((gap for gap, _ in steps), initial=-20)
    return [(at, kwh) for at, (_, kwh) in zip(itertools.islice(times, 1, None), steps, strict=True)]


gaps = st.sampled_from([1, 1, 1, 1, 2, 15, 30, 1450])
levels = st.sampled_from([100.0, 100.5, 101.0, 101.5, 99.5, 90.0, 89.0, 110.0, 1100.0, 0.0, 0.0, 0.5, 2.0]) | st.floats(
    0, 120
)
random_series = st.lists(st.tuples(gaps, levels), min_size=1, max_size=40).map(timed)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    points=random_series, mode=st.sampled_from(["interval", "register", "session"]), power=st.sampled_from([50, 500])
)
async def test_energy_is_that_of_the_reference(
    shared: asyncpg.Connection, points: list[Point], mode: EnergyMode, power: float
) -> None:
    meter_id = f"m{next(numbers)}"
    await store(shared, METER, meter_id, points)
    await set_energy_mode(shared, METER, meter_id, mode)
    await pair(shared, f"v{meter_id}", meter_id, minute(-10_000), None)

    answer = await measure(shared, f"v{meter_id}", 0, 60, Rules(power_max_kw=power))

    assert answer.ac_kwh == pytest.approx(reference(mode, sorted(points), 60, power), abs=2e-6)


# Verdicts.


async def window_of_ten(
    database: asyncpg.Connection, ac_kwh: float, dc_kwh: float, *, minutes: Iterable[int] = range(10), length: int = 10
) -> Performance:
    """A linked pair of its own with this energy, and a reading in each of the minutes."""
    number, minutes = next(numbers), list(minutes)
    for kind, total in ((METER, ac_kwh), (VEHICLE, dc_kwh)):
        await store(database, kind, f"d{number}", [(at, total if at == minutes[0] else 0.0) for at in minutes])
    await pair(database, f"d{number}", f"d{number}", minute(-5), None)
    return await measure(database, f"d{number}", 0, length)


@pytest.mark.parametrize(
    ("ac_kwh", "dc_kwh", "status", "efficiency"),
    [
        (10, 9, "ok", 0.9),
        (10, 8.5, "ok", 0.85),
        (10, 8.49999, "low_efficiency", 0.849999),
        (10, 0, "low_efficiency", 0),
        (10, 10, "ok", 1),
        (10, 10.00001, "above_unity", 1.000001),
        (1, 0.9, "ok", 0.9),
        (0.999999, 0.9, "insufficient_data", 0.900001),
        (0.5, 40, "insufficient_data", 80),
        (0, 40, "no_ac_energy", None),
        (0, 0, "no_ac_energy", None),
    ],
)
async def test_verdicts(
    shared: asyncpg.Connection, ac_kwh: float, dc_kwh: float, status: str, efficiency: float | None
) -> None:
    answer = await window_of_ten(shared, ac_kwh, dc_kwh)

    assert (answer.status, answer.efficiency) == (status, efficiency)
    assert (answer.ac_kwh, answer.dc_kwh, answer.coverage) == (ac_kwh, dc_kwh, 1)
    assert answer.loss_kwh == (None if efficiency is None else pytest.approx(ac_kwh - dc_kwh, abs=1e-9))
    assert answer.reason.endswith(".")


async def test_amounts_that_add_up_to_the_limit_only_on_paper_reach_it(shared: asyncpg.Connection) -> None:
    vehicle_id = f"v{next(numbers)}"
    await store(shared, METER, "tenths", series([1.0] * 10))
    await store(shared, VEHICLE, vehicle_id, series([0.1] * 8 + [0.7] * 11))  # 8.499999999999998 in floating point
    await pair(shared, vehicle_id, "tenths", minute(-5), None)

    answer = await measure(shared, vehicle_id, 0, 19)

    assert (answer.dc_kwh, answer.efficiency, answer.status) == (8.5, 0.85, "ok")


@pytest.mark.parametrize(
    ("minutes", "coverage", "status"),
    [(range(60), 1, "ok"), (range(30), 0.5, "ok"), (range(29), 0.483333, "insufficient_data")],
)
async def test_half_of_the_window_must_be_covered(
    shared: asyncpg.Connection, minutes: range, coverage: float, status: str
) -> None:
    answer = await window_of_ten(shared, 10, 9, minutes=minutes, length=60)
    assert (answer.coverage, answer.status) == (coverage, status)
    assert ("cover 48.3% of the window" in answer.reason) == (status == "insufficient_data")


async def test_both_sides_must_be_covered(shared: asyncpg.Connection) -> None:
    await store(shared, METER, "half", series([5.0] * 15))
    await store(shared, VEHICLE, "whole", series([1.0] * 60))
    await pair(shared, "whole", "half", minute(-5), None)

    answer = await measure(shared, "whole", 0, 60)

    assert (answer.vehicle_coverage, answer.meter_coverage, answer.coverage) == (1, 0.25, 0.25)
    assert answer.status == "insufficient_data"


# Coverage. The window has three hours, and the readings of the second hour are missing in the second column: the last
# one before it covers one cadence more, the first one after it one cadence less, so 3600 s less one cadence is bare.


@pytest.mark.parametrize(
    ("cadence_s", "phase_s", "with_gap"),
    [
        (10, 0, 1 - (3600 - 10) / 10800),
        (60, 0, 1 - (3600 - 60) / 10800),
        (60, 37, 1 - (3600 - 60) / 10800),
        (900, 0, 1 - (3600 - 900) / 10800),
        (900, 400, 1 - (3600 - 900) / 10800),
    ],
)
async def test_coverage_by_the_cadence_of_the_device(
    shared: asyncpg.Connection, cadence_s: int, phase_s: int, with_gap: float
) -> None:
    seconds = range(phase_s, 10800, cadence_s)
    answers = []
    for times in (seconds, [at for at in seconds if not 3600 <= at < 7200]):
        device_id = f"d{next(numbers)}"
        for kind in (METER, VEHICLE):
            await store(shared, kind, device_id, [(at / 60, 0.1) for at in times])
        await pair(shared, device_id, device_id, minute(-5), None)
        answers.append(await measure(shared, device_id, 0, 180))

    whole, holed = answers
    assert (whole.vehicle_coverage, whole.meter_coverage) == (1, 1)
    assert holed.vehicle_coverage == holed.meter_coverage == pytest.approx(with_gap, abs=1e-6)


@pytest.mark.parametrize(
    ("minutes", "covered_min"),
    [
        ([30], 2),  # one reading: a minute before and after is taken for its cadence
        ([30, 31], 3),
        ([10, 11, 12, 14, 15], 7),  # one lost reading leaves no hole
        ([10, 11, 12, 15, 16], 7),  # two do: the third of the three minutes between them
        ([0, 59], 60),  # nothing tells that 59 minutes are not its cadence
        ([*range(0, 30, 2), *range(30, 60)], 60),  # faster in the second half: a gap up to twice the cadence is none
    ],
)
async def test_coverage_of_few_readings(shared: asyncpg.Connection, minutes: list[int], covered_min: float) -> None:
    answer = await window_of_ten(shared, 10, 9, minutes=minutes, length=60)
    assert answer.coverage == pytest.approx(covered_min / 60, abs=1e-6)


async def test_a_cadence_is_at_most_an_hour(shared: asyncpg.Connection) -> None:
    answer = await window_of_ten(shared, 10, 9, minutes=[0, 80, 160, 1200], length=2400)
    assert answer.coverage == pytest.approx((1 + 60 + 80 + 60 + 1 + 1) / 2400, abs=1e-6)


async def test_coverage_counts_only_while_linked(shared: asyncpg.Connection) -> None:
    for kind in (METER, VEHICLE):
        await store(shared, kind, "quarter", series([0.5] * 60))
    await pair(shared, "quarter", "quarter", minute(10.5), minute(25.5))

    answer = await measure(shared, "quarter", 0, 60)

    assert (answer.vehicle_coverage, answer.meter_coverage) == (0.25, 0.25)


# Links.


async def test_ac_counts_only_while_linked_and_dc_only_then_for_the_ratio(database: asyncpg.Connection) -> None:
    await store(database, METER, "m1", series([1.0] * 60))
    await store(database, VEHICLE, "v1", series([0.9] * 60))
    await pair(database, "v1", "m1", minute(20), minute(50))

    answer = await measure(database, "v1", 0, 60)

    assert (answer.ac_kwh, answer.dc_kwh, answer.dc_kwh_unlinked) == (30, 27, 27)
    assert (answer.efficiency, answer.status, answer.coverage) == (0.9, "ok", 0.5)
    assert (answer.samples, answer.meter_samples) == (60, 30)


async def test_a_pair_that_was_changed_in_the_middle(database: asyncpg.Connection) -> None:
    await store(database, METER, "m1", series([1.0] * 60))
    await store(database, METER, "m2", series([1000 + 2.0 * n for n in range(61)], first=-1))
    await set_energy_mode(database, METER, "m2", "register")
    await store(database, VEHICLE, "v1", series([0.9] * 60))
    await store(database, VEHICLE, "v2", series([0.5] * 60))
    await pair(database, "v1", "m1", minute(-99), None)
    await pair(database, "v2", "m2", minute(-99), None)
    await pair(database, "v1", "m2", minute(40), None)

    answer = await measure(database, "v1", 0, 60)
    other = await measure(database, "v2", 0, 60)

    assert [(share.meter_id, share.energy_mode, share.ac_kwh, share.samples) for share in answer.meters] == [
        ("m1", "interval", 40, 40),
        ("m2", "register", 40, 20),
    ]
    assert [(share.linked_from, share.linked_to) for share in answer.meters] == [
        (minute(0), minute(40)),
        (minute(40), minute(60)),
    ]
    assert (answer.ac_kwh, answer.dc_kwh, answer.coverage) == (80, 54, 1)
    assert (other.ac_kwh, other.dc_kwh, other.dc_kwh_unlinked) == (80, 20, 10)


async def test_the_same_pair_twice_in_a_window(database: asyncpg.Connection) -> None:
    for kind in (METER, VEHICLE):
        await store(database, kind, "d", series([1.0] * 60))
    await pair(database, "d", "d", minute(0), minute(10))
    await pair(database, "d", "d", minute(30), minute(50))

    answer = await measure(database, "d", 0, 60)

    assert [share.ac_kwh for share in answer.meters] == [10, 20]
    assert (answer.ac_kwh, answer.dc_kwh, answer.dc_kwh_unlinked) == (30, 30, 30)


async def test_a_corrected_link_changes_the_past(database: asyncpg.Connection) -> None:
    for kind in (METER, VEHICLE):
        await store(database, kind, "d", series([1.0] * 60))
    before = await measure(database, "d", 0, 60)

    await pair(database, "d", "d", minute(0), minute(60))

    after = await measure(database, "d", 0, 60)
    assert (before.status, before.ac_kwh, after.status, after.ac_kwh) == ("unlinked", 0, "ok", 60)


async def test_late_readings_change_the_answer(database: asyncpg.Connection) -> None:
    await pair(database, "d", "d", minute(-5), None)
    await store(database, VEHICLE, "d", series([0.9] * 60))
    await store(database, METER, "d", series([2.0] * 20))
    before = await measure(database, "d", 0, 60)

    await store(database, METER, "d", series([0.5] * 40, first=20))

    after = await measure(database, "d", 0, 60)
    assert (before.ac_kwh, before.coverage, before.status) == (40, 0.333333, "insufficient_data")
    assert (after.ac_kwh, after.coverage, after.status) == (60, 1, "ok")


async def test_a_late_reading_tells_what_came_before_a_reset(database: asyncpg.Connection) -> None:
    await pair(database, "d", "d", minute(-5), None)
    await store(database, METER, "d", [(-1, 100.0), (10, 1.0)])
    await set_energy_mode(database, METER, "d", "register")
    assert (await measure(database, "d", 0, 60)).ac_kwh == 1

    await store(database, METER, "d", [(5, 105.0)])

    assert (await measure(database, "d", 0, 60)).ac_kwh == 6


async def test_a_corrected_mode_repairs_the_past(database: asyncpg.Connection) -> None:
    await pair(database, "d", "d", minute(-5), None)
    await store(database, VEHICLE, "d", series([0.9] * 60))
    await store(database, METER, "d", series([5000.0 + n for n in range(61)], first=-1))
    wrong = await measure(database, "d", 0, 60)

    await set_energy_mode(database, METER, "d", "register")

    right = await measure(database, "d", 0, 60)
    assert (wrong.ac_kwh, wrong.status) == (sum(range(5001, 5061)), "low_efficiency")
    assert (right.ac_kwh, right.status, right.efficiency) == (60, "ok", 0.9)


async def test_windows_that_adjoin_add_up(database: asyncpg.Connection) -> None:
    await pair(database, "d", "d", minute(-5), None)
    levels = [100, 100.4, 0, 100.6, 100.2, 100.9, 1200, 1200.5, 0.3, 0.6, 0, 0.7, 0.9]
    await store(database, METER, "d", series(levels, first=-1))
    await set_energy_mode(database, METER, "d", "register")
    whole = (await measure(database, "d", 0, 12)).ac_kwh
    for cut in range(1, 12):
        parts = [await measure(database, "d", start, end) for start, end in ((0, cut), (cut, 12))]
        assert sum(part.ac_kwh for part in parts) == pytest.approx(whole, abs=1e-6), cut


# Time zones. The window is an absolute one; the session's zone and its days of 23 and 25 hours do not matter.


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2024-03-31T00:00Z", "2024-04-01T00:00Z"),
        ("2024-03-30T23:00Z", "2024-03-31T22:00Z"),  # the day of 23 hours in Berlin
        ("2024-10-27T00:00Z", "2024-10-28T00:00Z"),
        ("2024-10-26T22:00Z", "2024-10-27T23:00Z"),  # the day of 25 hours in Berlin
    ],
)
async def test_days_of_23_and_25_hours(shared: asyncpg.Connection, zone: str, start: str, end: str) -> None:
    await shared.execute(f"SET timezone = '{zone}'")
    first, last = datetime.fromisoformat(start), datetime.fromisoformat(end)
    minutes = round((last - first) / timedelta(minutes=1))
    offset = (first - START) / timedelta(minutes=1)
    device_id = f"d{next(numbers)}"
    for kind, step in ((METER, 0.01), (VEHICLE, 0.009)):
        await store(shared, kind, device_id, [(offset + n, 1000 + n * step) for n in range(-1, minutes + 2)])
        await set_energy_mode(shared, kind, device_id, "register")
    await pair(shared, device_id, device_id, first - timedelta(days=3), None)

    answer = await performance(shared, device_id, first, last, RULES)

    assert answer is not None
    assert (answer.start, answer.end, answer.samples, answer.meter_samples) == (first, last, minutes, minutes)
    assert answer.ac_kwh == pytest.approx(minutes * 0.01)
    assert answer.dc_kwh == pytest.approx(minutes * 0.009)
    assert (answer.coverage, answer.status) == (1, "ok")


# Vehicles without meters, meters without vehicles.


async def test_nobody_knows_the_vehicle(database: asyncpg.Connection) -> None:
    await store(database, METER, "m1", series([1.0]))
    assert await performance(database, "m1", minute(0), minute(60), RULES) is None


@pytest.mark.parametrize("how", ["seen", "linked", "configured"])
async def test_a_vehicle_is_known_once_seen_linked_or_configured(database: asyncpg.Connection, how: str) -> None:
    match how:
        case "seen":
            await store(database, VEHICLE, "v1", series([1.0], first=5000))
        case "linked":
            await pair(database, "v1", "m1", minute(5000), None)
        case _:
            await set_energy_mode(database, VEHICLE, "v1", "session")

    answer = await measure(database, "v1", 0, 60)

    assert (answer.status, answer.samples, answer.coverage, answer.avg_battery_temp) == ("unlinked", 0, 0, None)
    assert (answer.fleet_ac_share, answer.fleet_ac_kwh, answer.fleet_dc_kwh) == (None, 0, 0)
    assert answer.energy_mode == ("session" if how == "configured" else "interval")


async def test_a_linked_vehicle_that_is_silent(database: asyncpg.Connection) -> None:
    await store(database, METER, "m1", series([1.0] * 60))
    await pair(database, "v1", "m1", minute(-5), None)

    answer = await measure(database, "v1", 0, 60)

    assert (answer.ac_kwh, answer.dc_kwh, answer.samples, answer.meter_samples) == (60, 0, 0, 60)
    assert (answer.vehicle_coverage, answer.meter_coverage, answer.status) == (0, 1, "insufficient_data")


async def test_an_unlinked_vehicle_has_its_share_of_the_fleets_ac_energy(database: asyncpg.Connection) -> None:
    await store(database, METER, "m1", series([1.0] * 60))
    await store(database, METER, "m2", series([100.0 + n / 2 for n in range(61)], first=-1))  # nobody's, 30 kWh
    await set_energy_mode(database, METER, "m2", "register")
    await store(database, VEHICLE, "v1", series([0.8] * 60))
    await store(database, VEHICLE, "v2", series([0.2] * 60))
    await store(database, VEHICLE, "v3", series([50.0 + n / 2 for n in range(61)], first=-1))
    await set_energy_mode(database, VEHICLE, "v3", "register")
    await pair(database, "v1", "m1", minute(-5), None)

    answer = await measure(database, "v2", 0, 60)

    assert (answer.status, answer.ac_kwh, answer.dc_kwh, answer.dc_kwh_unlinked) == ("unlinked", 0, 12, 12)
    assert (answer.efficiency, answer.loss_kwh, answer.coverage) == (None, None, 1)
    assert (answer.fleet_ac_kwh, answer.fleet_dc_kwh) == (60 + 30, 48 + 12 + 30)
    assert answer.fleet_ac_share == 12
    assert "linked with no meter" in answer.reason


async def test_battery_temperature_is_the_mean_of_all_readings_in_the_window(database: asyncpg.Connection) -> None:
    await store(database, VEHICLE, "v1", series([1.0] * 3), battery_temp=10.0)
    await store(database, VEHICLE, "v1", series([1.0], first=3), battery_temp=30.0)
    await store(database, VEHICLE, "v1", series([1.0], first=4), battery_temp=-60.0)
    await pair(database, "v1", "m1", minute(2), None)

    assert (await measure(database, "v1", 0, 4)).avg_battery_temp == 15


# The fleet.


async def make_fleet(database: asyncpg.Connection) -> None:
    """By name, what each vehicle has per minute of the 60: AC, DC."""
    pairs = {
        "good": (1.0, 0.9),
        "bad": (1.0, 0.5),
        "worse": (1.0, 0.4),
        "odd": (1.0, 1.1),
        "small": (0.01, 0.005),
        "fast": (0.0, 2.0),
    }
    for name, (ac_kwh, dc_kwh) in pairs.items():
        await store(database, METER, f"m-{name}", series([ac_kwh] * 60))
        await store(database, VEHICLE, name, series([dc_kwh] * 60))
        await pair(database, name, f"m-{name}", minute(-5), None)
    await store(database, METER, "m-alone", series([0.5] * 60))
    await store(database, VEHICLE, "alone", series([0.25] * 60))


async def test_the_fleet_adds_up(database: asyncpg.Connection) -> None:
    await make_fleet(database)

    answer = await fleet(database, minute(0), minute(60), RULES, worst=2)

    assert (answer.ac_kwh, answer.dc_kwh, answer.loss_kwh) == (240.6, 294.3, -53.7)
    assert answer.efficiency == round(294.3 / 240.6, 6)
    assert (answer.unlinked_ac_kwh, answer.unlinked_dc_kwh) == (30, 15)
    assert (answer.vehicles, answer.linked) == (7, 6)
    assert answer.status_counts == {
        "ok": 1,
        "low_efficiency": 2,
        "insufficient_data": 1,
        "above_unity": 1,
        "no_ac_energy": 1,
        "unlinked": 1,
    }
    assert [(one.vehicle_id, one.efficiency, one.status) for one in answer.worst] == [
        ("worse", 0.4, "low_efficiency"),
        ("bad", 0.5, "low_efficiency"),
    ]


async def test_the_fleet_says_of_each_vehicle_what_its_own_page_says(
    database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_fleet(database)
    monkeypatch.setattr("sql.measure.PIECES_A_QUERY", 2)

    answer = await fleet(database, minute(0), minute(60), RULES, worst=10)

    assert [one.vehicle_id for one in answer.worst] == ["worse", "bad", "good"]
    for one in answer.worst:
        own = to_builtins(await measure(database, one.vehicle_id, 0, 60))
        assert {name: own[name] for name in to_builtins(one)} == to_builtins(one)


async def test_an_empty_fleet(database: asyncpg.Connection) -> None:
    answer = await fleet(database, minute(0), minute(60), RULES, worst=5)

    assert isinstance(answer, FleetPerformance)
    assert (answer.ac_kwh, answer.efficiency, answer.loss_kwh, answer.vehicles, answer.worst) == (0, None, None, 0, [])


async def test_answers_are_encoded_with_the_names_of_the_contract(database: asyncpg.Connection) -> None:
    await make_fleet(database)
    own = to_builtins(await measure(database, "good", 0, 60))
    assert {"from", "to", "vehicleId", "acKwh", "dcKwh", "lossKwh", "avgBatteryTemp", "energyMode"} <= set(own)
    assert set(own["flags"]) == {"impossibleSteps", "resets", "dips", "glitches"}
    assert {"from", "to", "statusCounts", "unlinkedAcKwh"} <= set(
        to_builtins(await fleet(database, minute(0), minute(60), RULES, worst=5))
    )


# The plan.


class Explaining:
    """A connection that explains each statement before it runs it, and keeps the scans of tables that were executed."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self.scans: list[tuple[str, str]] = []

    async def fetch(self, statement: str, *arguments: Any) -> Any:
        await self._explain(statement, arguments)
        return await self._connection.fetch(statement, *arguments)

    async def fetchval(self, statement: str, *arguments: Any) -> Any:
        await self._explain(statement, arguments)
        return await self._connection.fetchval(statement, *arguments)

    async def fetchrow(self, statement: str, *arguments: Any) -> Any:
        await self._explain(statement, arguments)
        return await self._connection.fetchrow(statement, *arguments)

    async def _explain(self, statement: str, arguments: tuple[Any, ...]) -> None:
        answer = await self._connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *arguments)
        self.scans += scans(json.loads(answer)[0]["Plan"])


def scans(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "_reading" in plan.get("Relation Name", "") and plan["Actual Loops"]:
        yield plan["Node Type"], plan["Relation Name"]
    for child in plan.get("Plans", []):
        yield from scans(child)


@pytest.mark.parametrize("plan_cache_mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("analyzed", [True, False], ids=["with statistics", "without statistics"])
async def test_performance_reads_by_index_and_only_the_partitions_it_needs(
    database: asyncpg.Connection, plan_cache_mode: str, analyzed: bool
) -> None:
    days = range(-3, 4)
    for kind in (METER, VEHICLE):
        points = [(day * 1440 + n * 30, 100.0 + day * 48 + n) for day in days for n in range(48)]
        for number in range(60):
            await store(database, kind, f"d{number}", points)
    for number in (7, 8):
        for kind in (METER, VEHICLE):
            await set_energy_mode(database, kind, f"d{number}", "interval" if number == 7 else "register")
        await pair(database, f"d{number}", f"d{number}", minute(-99999), None)
    if analyzed:
        await database.execute("ANALYZE")
    await database.execute(f"SET plan_cache_mode = {plan_cache_mode}")

    read = {}
    for number in (7, 8):
        connection = Explaining(database)
        answer = await performance(connection, f"d{number}", minute(65), minute(1310), RULES)
        assert answer is not None
        assert answer.samples == 41
        assert {node for node, _ in connection.scans} <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
        read[number] = {table for _, table in connection.scans}

    today = {f"{kind.history_table}_20240502" for kind in (METER, VEHICLE)}
    yesterday = {f"{kind.history_table}_20240501" for kind in (METER, VEHICLE)}
    assert read[7] == today
    assert read[8] == today | yesterday


async def test_two_answers_at_once_are_the_same(
    shared_url: str, database: asyncpg.Connection, connected: Connect
) -> None:
    await make_fleet(database)
    connections = [await connected(shared_url) for _ in range(4)]
    answers = await asyncio.gather(*(measure(connection, "good", 0, 60) for connection in connections))
    assert all(answer == answers[0] for answer in answers)
