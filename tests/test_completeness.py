"""How completely a device reported: cases counted by hand, a reference in plain Python, and the plan of the queries."""

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from statistics import median_low
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sql import completeness as module
from sql.completeness import GAPS_SHOWN_MAX, Completeness, Gap, Silence, completeness, hours_of
from sql.partitions import Days
from sql.store import METER, VEHICLE, Kind, copy, sort

START = datetime(2024, 5, 2, 6, tzinfo=UTC)
DAY_S = 86400
_numbers = itertools.count(1)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def clock(text: str) -> float:
    """Seconds from START to a time of its day."""
    hours, minutes = text.split(":")
    return (int(hours) - START.hour) * 3600 + int(minutes) * 60


def each(cadence_s: int, first: str, last: str) -> list[float]:
    """A reading each `cadence_s`, from a time to another, both included."""
    return list(range(int(clock(first)), int(clock(last)) + 1, cadence_s))


async def store(database: asyncpg.Connection, kind: Kind, device_id: str, seconds: Iterable[float]) -> None:
    values = (1.0, 230.0) if kind is METER else (50.0, 1.0, 20.0)
    received_at = datetime.now(UTC) + timedelta(microseconds=next(_numbers))
    rows = [(device_id, at(second), *values, received_at, b"") for second in seconds]
    if rows:
        await copy(database, kind, sort(rows), Days())


async def ask(
    database: asyncpg.Connection, device_id: str, start: float, end: float, now: float | None = None, kind: Kind = METER
) -> Completeness:
    found = await completeness(database, kind, device_id, at(start), at(end), at(end if now is None else now))
    assert found is not None
    return found


async def of(
    database: asyncpg.Connection, seconds: Iterable[float], start: str, end: str, now: str | None = None
) -> Completeness:
    """The answer about a meter with these readings."""
    device_id = f"m{next(_numbers)}"
    await store(database, METER, device_id, seconds)
    return await ask(database, device_id, clock(start), clock(end), clock(now or end))


def by_hour(answer: Completeness) -> list[tuple[int, int | None]]:
    return [(hour.came, hour.expected) for hour in answer.hours]


def gaps(answer: Completeness) -> list[tuple[str, str, int]]:
    return [(f"{gap.start:%H:%M}", f"{gap.end:%H:%M}", gap.missing) for gap in answer.gaps]


# Counted by hand.


@pytest.mark.parametrize("kind", [METER, VEHICLE], ids=lambda kind: kind.name)
async def test_a_device_that_sends_each_minute_is_complete(shared: asyncpg.Connection, kind: Kind) -> None:
    device_id = f"d{next(_numbers)}"
    await store(shared, kind, device_id, each(60, "05:00", "08:59"))

    answer = await ask(shared, device_id, clock("06:00"), clock("09:00"), kind=kind)

    assert by_hour(answer) == [(60, 60)] * 3
    assert (answer.came, answer.expected, answer.completeness, answer.cadence_s) == (180, 180, 1.0, 60)
    assert answer.gaps == []
    assert answer.last_reading_at == at(clock("08:59"))
    assert [hour.start for hour in answer.hours] == [at(clock(text)) for text in ("06:00", "07:00", "08:00")]


async def test_a_device_that_sends_each_five_minutes_is_complete_too(shared: asyncpg.Connection) -> None:
    answer = await of(shared, each(300, "05:02", "08:57"), "06:00", "09:00")
    assert (by_hour(answer), answer.cadence_s, answer.gaps) == ([(12, 12)] * 3, 300, [])


async def test_one_that_sends_each_hour_is_known_by_several_hours(shared: asyncpg.Connection) -> None:
    answer = await of(shared, each(3600, "06:30", "19:30"), "06:00", "20:00")
    assert (by_hour(answer), answer.cadence_s, answer.gaps) == ([(1, 1)] * 14, 3600, [])


async def test_a_device_that_was_away_for_three_hours(shared: asyncpg.Connection) -> None:
    readings = each(60, "06:00", "08:29") + each(60, "11:30", "12:59")
    answer = await of(shared, readings, "06:00", "13:00")
    # The readings of 08:30 to 11:29 are missing: 180.
    assert by_hour(answer) == [(60, 60), (60, 60), (30, 60), (0, 60), (0, 60), (30, 60), (60, 60)]
    assert gaps(answer) == [("08:29", "11:30", 180)]
    assert answer.completeness == round(240 / 420, 6)


async def test_one_lost_reading_is_missing_and_no_gap(shared: asyncpg.Connection) -> None:
    answer = await of(
        shared, sorted(set(each(60, "06:00", "06:59")) - {clock("06:20"), clock("06:40")}), "06:00", "07:00"
    )
    assert (by_hour(answer), answer.gaps) == ([(58, 60)], [])


async def test_two_lost_in_a_row_are_a_gap(shared: asyncpg.Connection) -> None:
    answer = await of(
        shared, sorted(set(each(60, "06:00", "06:59")) - {clock("06:20"), clock("06:21")}), "06:00", "07:00"
    )
    assert (by_hour(answer), gaps(answer)) == ([(58, 60)], [("06:19", "06:22", 2)])


@pytest.mark.parametrize(
    ("step_s", "missing", "is_gap"), [(89, 0, False), (90, 1, False), (149, 1, False), (150, 2, True)]
)
@pytest.mark.parametrize("last", ["06:30", "06:59"], ids=["within an hour", "over its edge"])
async def test_where_missing_and_where_a_gap_begins(
    shared: asyncpg.Connection, last: str, step_s: int, missing: int, is_gap: bool
) -> None:
    before = each(60, "06:00", last)
    answer = await of(shared, [*before, *(before[-1] + step_s + 60 * n for n in range(60))], "06:00", "07:30")
    assert (answer.expected, bool(answer.gaps)) == (answer.came + missing, is_gap)


async def test_a_reading_at_the_end_is_outside_and_the_silence_before_it_inside(shared: asyncpg.Connection) -> None:
    answer = await of(shared, [*each(60, "05:00", "06:20"), clock("06:30")], "06:00", "06:30", now="06:40")
    assert (by_hour(answer), gaps(answer)) == ([(21, 30)], [("06:20", "06:30", 9)])


async def test_what_came_a_little_late_behind_the_window_was_not_missing_in_it(shared: asyncpg.Connection) -> None:
    """Each minute at :40, and 29 s late at the first minute after seven."""
    readings = [time - 20 for time in (*each(60, "05:00", "06:59"), clock("07:00") + 29)]
    answer = await of(shared, readings, "06:00", "07:00", now="08:00")
    assert (by_hour(answer), answer.gaps) == ([(59, 59)], [])


async def test_a_cadence_that_changes_makes_no_gap(shared: asyncpg.Connection) -> None:
    answer = await of(shared, each(60, "05:00", "08:30") + each(300, "08:35", "12:55"), "06:00", "13:00")
    assert by_hour(answer) == [(60, 60), (60, 60), (36, 36), (12, 12), (12, 12), (12, 12), (12, 12)]
    assert [hour.cadence_s for hour in answer.hours] == [60, 60, 60, 300, 300, 300, 300]
    assert (answer.gaps, answer.cadence_s) == ([], 300)


@pytest.mark.parametrize("cadence_s", [600, 1800, 3600])
async def test_a_cadence_that_becomes_much_longer_makes_no_gap_once_six_steps_are_seen(
    shared: asyncpg.Connection, cadence_s: int
) -> None:
    answer = await of(shared, each(60, "05:00", "09:00") + each(cadence_s, "10:00", "23:00"), "06:00", "23:05")
    assert all(hour.came == hour.expected for hour in answer.hours[4:])
    assert answer.cadence_s == cadence_s


async def test_a_cadence_that_becomes_shorter_is_followed(shared: asyncpg.Connection) -> None:
    answer = await of(shared, each(300, "05:00", "08:30") + each(60, "08:31", "10:59"), "06:00", "11:00")
    assert by_hour(answer) == [(12, 12), (12, 12), (36, 36), (60, 60), (60, 60)]
    assert answer.gaps == []


async def test_a_late_array_fills_the_gap(shared: asyncpg.Connection) -> None:
    device_id = f"m{next(_numbers)}"
    await store(shared, METER, device_id, each(60, "06:00", "06:59") + each(60, "08:00", "08:59"))
    window = clock("06:00"), clock("09:00")
    before = await ask(shared, device_id, *window)
    assert (by_hour(before), gaps(before)) == ([(60, 60), (0, 60), (60, 60)], [("06:59", "08:00", 60)])

    await store(shared, METER, device_id, each(60, "07:00", "07:59"))
    after = await ask(shared, device_id, *window)
    assert (by_hour(after), after.gaps, after.completeness) == ([(60, 60)] * 3, [], 1.0)


async def test_a_new_device_misses_nothing_before_it_was_there(shared: asyncpg.Connection) -> None:
    answer = await of(shared, each(60, "08:30", "09:59"), "06:00", "10:00")
    assert by_hour(answer) == [(0, 0), (0, 0), (30, 30), (60, 60)]
    assert (answer.completeness, answer.gaps) == (1.0, [])


async def test_the_first_and_the_running_hour_count_for_their_part(shared: asyncpg.Connection) -> None:
    answer = await of(shared, each(60, "05:00", "08:10"), "06:20", "08:15")
    # At 08:15 those of 08:11 to 08:14 are late by half a minute and more.
    assert by_hour(answer) == [(40, 40), (60, 60), (11, 15)]
    assert gaps(answer) == [("08:10", "08:15", 4)]
    assert (answer.hours[0].start, answer.hours[-1].end) == (at(clock("06:20")), at(clock("08:15")))


async def test_what_is_late_by_less_than_half_a_cadence_is_not_missing(shared: asyncpg.Connection) -> None:
    device_id = f"m{next(_numbers)}"
    await store(shared, METER, device_id, each(60, "05:00", "06:10"))
    expected = {}
    for late_s in (0, 29, 30, 89, 90):
        now = clock("06:11") + late_s
        expected[late_s] = (await ask(shared, device_id, clock("06:00"), now + 1, now)).expected
    assert expected == {0: 11, 29: 11, 30: 12, 89: 12, 90: 13}


async def test_nothing_is_missing_in_the_future(shared: asyncpg.Connection) -> None:
    answer = await of(shared, each(60, "05:00", "06:59"), "06:00", "09:00", now="07:00")
    assert (by_hour(answer), answer.gaps) == ([(60, 60), (0, 0), (0, 0)], [])


async def test_a_device_that_fell_silent_before_the_window_misses_all_of_it(shared: asyncpg.Connection) -> None:
    readings = each(60, "05:00", "06:30")
    answer = await of(shared, readings, "08:00", "10:00")
    assert (by_hour(answer), gaps(answer), answer.completeness) == ([(0, 60)] * 2, [("08:00", "10:00", 120)], 0)
    assert answer.last_reading_at == at(clock("06:30"))


async def test_also_where_that_was_weeks_before(shared: asyncpg.Connection) -> None:
    device_id = f"m{next(_numbers)}"
    await store(shared, METER, device_id, (second - 20 * DAY_S for second in each(60, "05:00", "06:30")))
    answer = await ask(shared, device_id, clock("08:00"), clock("10:00"))
    assert by_hour(answer) == [(0, 60)] * 2


async def test_a_window_within_a_silence_that_is_over(shared: asyncpg.Connection) -> None:
    answer = await of(shared, each(60, "05:00", "06:30") + each(60, "12:00", "13:00"), "08:00", "10:00", now="14:00")
    assert (by_hour(answer), gaps(answer)) == ([(0, 60)] * 2, [("08:00", "10:00", 120)])


async def test_a_window_before_the_device_was_there(shared: asyncpg.Connection) -> None:
    answer = await of(shared, each(60, "12:00", "13:00"), "08:00", "10:00", now="14:00")
    assert (answer.came, answer.expected, answer.completeness, answer.gaps) == (0, None, None, [])


async def test_too_few_readings_tell_no_cadence(shared: asyncpg.Connection) -> None:
    few = await of(shared, [0, 60, 120], "06:00", "07:00")
    assert (few.came, few.expected, few.completeness, few.cadence_s, few.gaps) == (3, None, None, None, [])
    enough = await of(shared, [0, 60, 120, 180], "06:00", "07:00", now="06:03")
    assert (enough.came, enough.expected, enough.cadence_s) == (4, 4, 60)


async def test_a_device_that_sends_in_pairs_has_no_cadence(shared: asyncpg.Connection) -> None:
    times = each(60, "05:00", "06:59")
    answer = await of(shared, sorted(times + [time + 1 for time in times]), "06:00", "07:00")
    assert (answer.came, answer.expected, answer.cadence_s) == (120, None, None)


async def test_a_flaky_day_does_not_pass_for_a_slower_device(shared: asyncpg.Connection) -> None:
    """Two of three are lost: 60 s, as it was before, is the cadence, and not 120 or 180."""
    dice = random.Random(1)
    kept = [time for time in each(60, "06:00", "11:59") if dice.random() > 2 / 3]
    answer = await of(shared, each(60, "03:00", "05:59") + kept, "06:00", "12:00")
    assert answer.cadence_s == 60
    assert answer.came == len(kept)
    assert answer.expected is not None
    assert 358 <= answer.expected <= 360


async def test_the_longest_gaps_are_shown_in_the_order_of_time(shared: asyncpg.Connection) -> None:
    """200 gaps of one to four minutes at a reading each second, and one that goes on: the hundred longest are left."""
    times, time = list(range(600)), 600
    for n in range(200):
        time += 60 * (1 + n % 4)
        times += range(time, time + 20)
        time += 20
    answer = await of(shared, times, "06:00", "16:00", now="15:59")
    lengths = [(gap.end - gap.start).total_seconds() // 60 for gap in answer.gaps]
    assert (len(lengths), min(lengths), answer.gaps_omitted) == (GAPS_SHOWN_MAX, 3, 201 - GAPS_SHOWN_MAX)
    assert answer.gaps == sorted(answer.gaps, key=lambda gap: gap.start)


async def test_gaps_are_counted_where_one_hour_has_more_than_are_shown(shared: asyncpg.Connection) -> None:
    """Five readings, a second apart, and three missing: 450 times in the hour."""
    answer = await of(shared, [8 * n + k for n in range(450) for k in range(5)], "06:00", "07:00")
    assert (answer.came, answer.expected) == (2250, 3600)
    assert (len(answer.gaps), answer.gaps_omitted) == (GAPS_SHOWN_MAX, 450 - GAPS_SHOWN_MAX)


async def test_nobody_knows_a_device_without_readings(shared: asyncpg.Connection) -> None:
    assert await completeness(shared, METER, "nobody", at(0), at(3600), at(3600)) is None


# A reference in plain Python: every reading is looked at, every due one is named.

Report = tuple[list[tuple[int, int | None]], float | None, list[Gap]]


def reference(times: list[datetime], start: datetime, end: datetime, now: datetime) -> Report:
    """What the top of sql/completeness.py says."""
    hours = hours_of(start, end)
    cadences = cadences_by_hour(times, start, end)
    came = [sum(start <= time < end and hour <= time < hour + module.HOUR for time in times) for hour in hours]
    if cadences is None:
        return [(count, None) for count in came], None, []
    missing, found = dict.fromkeys(hours, 0), []
    for before, after in itertools.zip_longest(times, times[1:]):
        until = after or now
        n = next((n for n, hour in enumerate(hours) if hour <= until < hour + module.HOUR), len(hours) - 1)
        cadence = timedelta(seconds=max(cadences[max(0, n - 1) : n + 2]))
        if before >= end or until < start:
            continue
        due = [before + cadence * k for k in range(1, (max(until, before) - before) // cadence + 1)]
        late = [time for time in due if time + cadence / 2 <= until]
        inside = [time for time in late if start <= time < end]
        for time in inside:
            missing[hours_of(time, time + module.HOUR)[0]] += 1
        if len(late) >= 2 and inside:
            found.append(Gap(max(before, start), min(until, end), len(inside)))
    longest = sorted(found, key=lambda gap: (gap.start - gap.end, gap.start))[:GAPS_SHOWN_MAX]
    expected: list[tuple[int, int | None]] = [
        (count, count + missing[hour]) for count, hour in zip(came, hours, strict=True)
    ]
    return expected, cadences[-1], sorted(longest, key=lambda gap: gap.start)


def cadences_by_hour(times: list[datetime], start: datetime, end: datetime) -> list[float] | None:
    before, inside = [time for time in times if time < start], [time for time in times if start <= time < end]
    near_before = [time for time in before if time >= start - timedelta(days=1)] or before
    steps_before = [step for _, step in steps(near_before[-101:])]
    pools: list[tuple[list[datetime], list[float]]] = [([], steps_before)]
    waiting: list[tuple[datetime, list[float]]] = []
    sample = list(steps_before)
    for hour in hours_of(start, end):
        own = [step for after, step in steps(inside) if hour <= after < hour + module.HOUR]
        sample += own[:6]
        if not any(hour <= time < hour + module.HOUR for time in inside):
            continue
        if len(own) >= 6:
            pools.append(([hour], own))
            waiting = []
            continue
        waiting.append((hour, own))
        while sum(len(few) for _, few in waiting) >= 6:
            pool = [step for _, few in waiting for step in few]
            pools.append(([each for each, _ in waiting], pool))
            waiting = [] if near(pool) >= 0.75 * len(pool) else waiting[1:]
    steady = [(hours, median_low(pool)) for hours, pool in pools if len(pool) >= 6 and near(pool) >= 0.75 * len(pool)]
    if not steady and not (len(sample) >= 3 and near(sample) > len(sample) / 2):
        return None
    current = steady[0][1] if steady else median_low(sample)
    answer = []
    for hour in hours_of(start, end):
        current = next((cadence for hours, cadence in steady if hour in hours), current)
        answer.append(current)
    return answer


def steps(times: list[datetime]) -> list[tuple[datetime, float]]:
    return [(after, (after - before).total_seconds()) for before, after in itertools.pairwise(times)]


def near(pool: list[float]) -> int:
    return sum(0.75 * median_low(pool) <= step <= 1.25 * median_low(pool) for step in pool)


@st.composite
def series(draw: st.DrawFn) -> list[float]:
    """Readings of a device that changes its cadence, loses readings and falls silent, from a day before START on."""
    time: float = draw(st.integers(-DAY_S, 4 * 3600))
    times: list[float] = []
    for _ in range(draw(st.integers(1, 4))):
        cadence_s = draw(st.sampled_from([1, 7, 60, 300, 900, 1800, 3600]))
        loss = draw(st.sampled_from([0, 0, 10, 40, 70]))
        dice = draw(st.lists(st.integers(0, 99), max_size=60))
        times += [time + n * cadence_s for n, thrown in enumerate(dice) if thrown >= loss]
        time += len(dice) * cadence_s + draw(st.sampled_from([0, 0.25, 30, 600, 7200, DAY_S / 4]))
    return times or [time]


@given(series(), st.integers(-7200, 7200), st.integers(1, 30 * 3600), st.integers(-3600, 3600))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_sql_and_the_reference_agree(
    shared: asyncpg.Connection, seconds: list[float], first: int, length: int, ahead: int
) -> None:
    device_id = f"m{next(_numbers)}"
    await store(shared, METER, device_id, seconds)
    start, end, now = at(first), at(first + length), at(first + length + ahead)

    answer = await completeness(shared, METER, device_id, start, end, now)

    assert answer is not None
    hours, cadence_s, longest = reference(sorted(map(at, seconds)), start, end, now)
    assert by_hour(answer) == hours
    assert answer.cadence_s == cadence_s
    assert answer.gaps == longest
    assert answer.came == sum(came for came, _ in hours)


@given(st.integers(1, 10**7), st.integers(1, 10**6), st.lists(st.integers(-(10**6), 2 * 10**7), min_size=2, max_size=9))
def test_what_is_missing_is_cut_into_parts_and_none_is_lost(length_s: int, cadence_s: int, cuts: list[int]) -> None:
    silence = Silence(at(0), at(length_s), float(cadence_s))
    moments = [at(0), *(at(cut) for cut in sorted(cuts)), at(max(length_s, *cuts))]
    parts = [
        silence.missing_before(later) - silence.missing_before(sooner) for sooner, later in itertools.pairwise(moments)
    ]
    assert min(parts) >= 0
    assert sum(parts) == silence.missing


# The plan.


@pytest.mark.parametrize("name", ["measure_hours", "measure_silences"])
async def test_only_the_device_and_the_days_of_the_window_are_read(database: asyncpg.Connection, name: str) -> None:
    await database.execute("SET plan_cache_mode = force_custom_plan")
    days = [START.date() + timedelta(days=n) for n in range(-3, 4)]
    await Days().ensure(database, "meter_reading", days)
    await database.execute(
        "INSERT INTO meter_reading SELECT 'm' || n, minute, 1, 230, minute FROM generate_series(1, 200) AS n,"
        " generate_series($1::timestamptz, $1::timestamptz + interval '20 hours', interval '5 minutes') AS minute",
        START.replace(hour=1),
    )
    await database.execute("ANALYZE meter_reading")
    more = (module.NEAR, module.BLOCK_STEPS) if name.endswith("hours") else ([START], [300.0], 2, 100)
    explain = f"EXPLAIN (FORMAT JSON) {METER.query(name)}"
    plan = json.loads(await database.fetchval(explain, "m7", at(0), at(3 * 3600), *more))
    found = list(nodes(plan[0]["Plan"]))
    assert {node["Relation Name"] for node in found if "Relation Name" in node} == {f"meter_reading_{START:%Y%m%d}"}
    (condition,) = [node["Index Cond"] for node in found if "Index Cond" in node]
    assert "meter_id = 'm7'" in condition
    assert "ts >=" in condition


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)
