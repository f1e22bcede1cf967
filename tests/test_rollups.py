"""The rollups say what the history says: after late readings, in every energy mode, wherever the roller was stopped."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

import asyncpg
import pytest
from msgspec.structs import replace

from sql.analytics import Performance, Rules, fleet, performance
from sql.cells import Cell, total
from sql.devices import EnergyMode, set_energy_mode
from sql.energy import Counter
from sql.fleet import Summable, find_summable, sum_fleet
from sql.hours import DAY, HOUR, hour_floor
from sql.links import pair
from sql.measure import measure_history, rollup_state
from sql.partitions import Days, drop_before
from sql.pool import transaction
from sql.rollups import (
    GRACE,
    KINDS,
    agree_on_power,
    first_day_needed,
    keep_history_from,
    lag,
    rebuild,
    restart,
    step,
)
from sql.store import METER, VEHICLE, Kind, copy, sort
from sql.turn import take_turn
from tests.conftest import Connect
from tests.history import START, Point, minute, series, store

RULES = Rules()
MODES: tuple[EnergyMode, ...] = get_args(EnergyMode)
LATER = START + timedelta(days=40)
"""When everything of a test has long ended."""


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-9, abs=1e-6)


async def roll_up(database: asyncpg.Connection, now: datetime = LATER) -> None:
    for kind in KINDS:
        while await step(database, kind, now):
            pass


async def label(database: asyncpg.Connection, kind: Kind, power_max_kw: float) -> None:
    """Say that the cells were made with this power."""
    await database.execute("UPDATE rollup_state SET power_max_kw = $2 WHERE kind = $1", kind.name, power_max_kw)


async def measure(database: asyncpg.Connection, vehicle_id: str, start: datetime, end: datetime) -> Performance:
    answer = await performance(database, vehicle_id, start, end, RULES)
    assert answer is not None
    return answer


async def measure_from_history(
    database: asyncpg.Connection, vehicle_id: str, start: datetime, end: datetime
) -> Performance:
    """The same with no cell used: they are made with another power."""
    for kind in KINDS:
        await label(database, kind, RULES.power_max_kw + 1)
    answer = await measure(database, vehicle_id, start, end)
    for kind in KINDS:
        await label(database, kind, RULES.power_max_kw)
    return answer


def assert_same(answer: Performance, expected: Performance) -> None:
    for name in answer.__struct_fields__:
        found, right = getattr(answer, name), getattr(expected, name)
        if isinstance(found, float):
            assert found == pytest.approx(right, abs=2e-6), name
        elif name == "meters":
            assert [replace(share, ac_kwh=0) for share in found] == [replace(share, ac_kwh=0) for share in right]
            assert [share.ac_kwh for share in found] == pytest.approx([share.ac_kwh for share in right], abs=2e-6)
        elif name != "reason":  # which has the same numbers, rounded
            assert found == right, name


async def assert_cells_are_those_of_the_history(database: asyncpg.Connection, kind: Kind) -> None:
    """Each hour and each day in the tables, recomputed from the readings."""
    state = await rollup_state(database, kind)
    table = await database.fetch(f"SELECT * FROM {kind.name}_hour ORDER BY 1, 2")
    ids = [row[0] for row in await database.fetch(f"SELECT DISTINCT {kind.device_column} FROM {kind.history_table}")]
    counters = dict.fromkeys(ids, get_args(Counter))
    cells = await measure_history(database, kind, counters, START - 40 * DAY, state.rolled_through, state.power_max_kw)
    cells.sort(key=lambda cell: (cell["id"], cell["hour"]))
    for row, cell in itertools.zip_longest(table, cells):
        assert row[kind.device_column] == cell.pop("id")
        assert {name: row[name] for name in cell} == {
            name: close(value) if isinstance(value, float) else value for name, value in cell.items()
        }
    await assert_days_are_those_of_the_hours(database, kind, state.rolled_through)


async def assert_days_are_those_of_the_hours(database: asyncpg.Connection, kind: Kind, end: datetime) -> None:
    hours = await database.fetch(f"SELECT *, date_trunc('day', hour, 'UTC') AS day FROM {kind.name}_hour ORDER BY 1, 2")
    days = {tuple(row)[:2]: row for row in await database.fetch(f"SELECT * FROM {kind.name}_day")}
    of_day = {key: list(rows) for key, rows in itertools.groupby(hours, lambda row: (row[0], row["day"]))}
    assert set(days) == {key for key in of_day if key[1] + DAY <= end}
    for (device_id, day), rows in of_day.items():
        for n, row in enumerate(rows, start=1):
            so_far = total([cell(one) for one in rows[:n]], "interval", rows[0]["first_ts"], row["last_ts"])
            assert row["day_covered_s"] == close(so_far.covered_s)
            assert row["day_lead_s"] == (rows[0]["first_ts"] - day).total_seconds()
            assert row["lead_s"] == (row["first_ts"] - row["hour"]).total_seconds()
            assert row["trail_s"] == (row["hour"] + HOUR - row["last_ts"]).total_seconds()
            for mode in MODES:
                kwh = sum(one[f"kwh_{mode}"] for one in rows[:n])
                assert row[f"day_kwh_{mode}"] == close(kwh)
        if whole := days.get((device_id, day)):
            assert whole["lead_s"] == (whole["first_ts"] - day).total_seconds()
            assert whole["trail_s"] == (day + DAY - whole["last_ts"]).total_seconds()
            for mode in MODES:
                expected = total([cell(one) for one in rows], mode, day, day + DAY)
                assert_same_total(total([cell(whole)], mode, day, day + DAY), expected)


def assert_same_total(found: Any, expected: Any) -> None:
    for name in found.__struct_fields__:
        assert getattr(found, name) == close(getattr(expected, name)), name


def cell(row: Any) -> Cell:
    return Cell(**{name: row[name] for name in Cell.__struct_fields__ if name in row})


# A fleet that does everything that is odd, stored in any order, rolled up in between.


def odd_points(rng: random.Random) -> list[Point]:
    """Readings of one device over some days: rising, with glitches, resets, dips, jumps and silences."""
    points: list[Point] = []
    at, level = rng.uniform(-300, 300), rng.uniform(0, 500)
    every = rng.choice([1, 5, 15, 30, 60, 180])
    while at < 3 * 1440:
        shown = level
        match rng.choices(["rise", "glitch", "reset", "dip", "jump", "silence"], [90, 2, 1, 4, 1, 1])[0]:
            case "rise":
                level += rng.choice([0, 0.1, 0.2, 2])
                shown = level
            case "glitch":
                shown = rng.choice([0.0, level * 0.5])
            case "reset":
                level = shown = rng.choice([0.0, 0.3])
            case "dip":
                shown = level * rng.uniform(0.91, 0.999)
                level = rng.choice([level, shown])
            case "jump":
                shown = level + 1000
                level = rng.choice([level, shown])
            case _:
                at += rng.choice([40, 300, 2000])
        points.append((round(at, 3), shown))
        at += every * rng.choice([1, 1, 1, 1, 1, 1, 2, 3])
    return points


async def store_some(database: asyncpg.Connection, kind: Kind, device_id: str, points: list[Point]) -> None:
    if points:
        await store(database, kind, device_id, points, battery_temp=21.5)


@pytest.mark.parametrize("seed", range(6))
async def test_rollups_always_equal_a_recomputation_from_the_history(database: asyncpg.Connection, seed: int) -> None:
    rng = random.Random(seed)
    pieces = []
    for kind, number in itertools.product(KINDS, range(3)):
        device_id = f"{kind.name}-{number}"
        points = odd_points(rng)
        # Most in the order of time, so that they are rolled up and the rest is late.
        late = {point for point in points if rng.random() < 0.02} | set(points[200:230])
        await set_energy_mode(database, kind, device_id, rng.choice(MODES))
        parts = [points[n : n + 100] for n in range(0, len(points), 100)]
        pieces += [(part[0][0], kind, device_id, [one for one in part if one not in late]) for part in parts]
        pieces += [(rng.uniform(0, 6000), kind, device_id, [one]) for one in late]
    await pair(database, "vehicle-0", "meter-0", minute(-1000), minute(rng.uniform(100, 4000)))
    await pair(database, "vehicle-0", "meter-1", minute(4000), None)
    await pair(database, "vehicle-1", "meter-2", minute(rng.uniform(0, 3000)), None)

    for at, kind, device_id, points in sorted(pieces, key=lambda piece: piece[0]):
        await store_some(database, kind, device_id, points)
        for _ in range(rng.choice([0, 0, 1, 5])):
            await step(database, kind, minute(at) + rng.choice([0, 1, 5]) * HOUR)
        if rng.random() < 0.05:
            await assert_answers_are_those_of_the_history(database, rng)
    await roll_up(database)

    for kind in KINDS:
        await assert_cells_are_those_of_the_history(database, kind)
        assert await database.fetchval(f"SELECT count(*) FROM {kind.name}_late") == 0
    await assert_answers_are_those_of_the_history(database, rng)
    await set_energy_mode(database, METER, "meter-1", rng.choice(MODES))
    await set_energy_mode(database, VEHICLE, "vehicle-0", rng.choice(MODES))
    await pair(database, "vehicle-2", "meter-2", minute(3200.5), None)
    await assert_answers_are_those_of_the_history(database, rng)


async def assert_answers_are_those_of_the_history(
    database: asyncpg.Connection,
    rng: random.Random,
    vehicle_ids: Sequence[str] = ("vehicle-0", "vehicle-1", "vehicle-2"),
) -> None:
    start = minute(rng.uniform(-500, 3000))
    end = start + timedelta(minutes=rng.uniform(5, 4000))
    if rng.random() < 0.3:
        start, end = hour_floor(start), hour_floor(end) + HOUR
    for vehicle_id in vehicle_ids:
        if await performance(database, vehicle_id, start, end, RULES) is not None:
            answer = await measure(database, vehicle_id, start, end)
            assert_same(answer, await measure_from_history(database, vehicle_id, start, end))


@pytest.mark.parametrize("seed", range(4))
async def test_what_comes_in_time_never_makes_a_cell_wrong(database: asyncpg.Connection, seed: int) -> None:
    """Reading by reading, each hour rolled up as soon as may be: what follows tells what was a glitch."""
    rng = random.Random(seed)
    for kind in KINDS:
        await set_energy_mode(database, kind, "d", rng.choice(["register", "session"]))
    await pair(database, "d", "d", minute(-1000), None)
    every, level = rng.choice([10, 15, 20, 30]), 10_000.0
    for at in range(0, 1500, every):
        level += 0.5
        shown = rng.choice([level] * 6 + [0.0, 30.0, level + 900])
        for kind in KINDS:
            await store(database, kind, "d", [(at, shown)])
            for _ in range(rng.choice([1, 5])):
                await step(database, kind, minute(at + 3))
        if rng.random() < 0.2:
            await assert_answers_are_those_of_the_history(database, rng, ["d"])
            await assert_fleet_is_that_of_the_history(database, minute(0), hour_floor(minute(at)) + HOUR)
    await roll_up(database)
    for kind in KINDS:
        assert await database.fetchval(f"SELECT count(*) FROM {kind.name}_late") == 0
        await assert_cells_are_those_of_the_history(database, kind)


# The fleet.


async def assert_fleet_is_that_of_the_history(
    database: asyncpg.Connection, start: datetime, end: datetime, worst: int = 3
) -> bool:
    """Returns whether the answer was summed up, at least for some."""
    answer = await fleet(database, start, end, RULES, worst)
    summed = await find_summable(database, start, end, RULES.power_max_kw) is not None
    for kind in KINDS:
        await label(database, kind, RULES.power_max_kw + 1)
    expected = await fleet(database, start, end, RULES, worst)
    for kind in KINDS:
        await label(database, kind, RULES.power_max_kw)
    for name in ("ac_kwh", "dc_kwh", "loss_kwh", "efficiency", "unlinked_ac_kwh", "unlinked_dc_kwh"):
        assert getattr(answer, name) == (None if getattr(expected, name) is None else approximately(expected, name)), (
            name
        )
    assert (answer.vehicles, answer.linked, answer.status_counts) == (
        expected.vehicles,
        expected.linked,
        expected.status_counts,
    )
    assert [one.vehicle_id for one in answer.worst] == [one.vehicle_id for one in expected.worst]
    for one, right in zip(answer.worst, expected.worst, strict=True):
        assert one.status == right.status
        for name in ("ac_kwh", "dc_kwh", "loss_kwh", "efficiency", "coverage"):
            assert getattr(one, name) == approximately(right, name)
    return summed


def approximately(answer: Any, name: str) -> Any:
    value = getattr(answer, name)
    return None if value is None else pytest.approx(value, abs=2e-5)


async def test_the_fleet_of_whole_hours_is_summed_up_and_right(database: asyncpg.Connection) -> None:
    """Vehicles with each verdict, in each mode, with links that change, silences and late readings."""
    rng = random.Random(7)
    for number in range(24):
        mode = rng.choice(MODES)
        loss = rng.choice([0.5, 0.8, 0.9, 0.95, 1.1])
        for kind, factor in ((METER, 1.0), (VEHICLE, loss)):
            device_id, level, points = f"d{number:02}", 10.0, list[Point]()
            for at in range(-1500, 3200, rng.choice([5, 15])):
                step_kwh = rng.choice([0, 0.1, 0.3]) * factor * (number % 8 > 0)
                level += step_kwh
                if not (number % 5 == 3 and 300 < at < 1500) and not (number % 5 == 4 and -200 < at < 1700):
                    points.append((at, step_kwh if mode == "interval" else level))
            await store(database, kind, device_id, points)
            await set_energy_mode(database, kind, device_id, mode)
        match number % 6:
            case 0:
                pass  # no link
            case 1:
                await pair(database, f"d{number:02}", f"d{number:02}", minute(-2000), minute(rng.uniform(100, 2000)))
            case _:
                await pair(database, f"d{number:02}", f"d{number:02}", minute(-2000), None)
    await pair(database, "never-heard-of", "nor-this", minute(-2000), None)
    await set_energy_mode(database, VEHICLE, "configured", "session")
    await roll_up(database)

    windows: list[tuple[float, float]] = [(0, 1440), (-60, 60), (60, 120), (600, 2040), (0, 60), (1380, 1440)]
    windows += [(-1440, 1440), (-1440, 1500)]
    windows += [(-1440, 2880), (-1500, 3120), (-300, 1680), (-1380, 2820)]
    windows += [(30, 1440), (0.1, 1439.9), (30, 125), (-1439, 1380.5), (595, 2041), (-1495.5, 3100.3)]
    for start, end in windows:
        assert await assert_fleet_is_that_of_the_history(database, minute(start), minute(end), worst=24)
    assert not await assert_fleet_is_that_of_the_history(database, minute(30), minute(90))  # no whole hour
    await store(database, VEHICLE, "d08", [(333.5, 2.0)])
    assert await assert_fleet_is_that_of_the_history(database, minute(0), minute(1440))
    rows = [(f"late{n}", minute(70), 1.0, 230.0, minute(1), b"") for n in range(1001)]
    await copy(database, METER, sort(rows), Days())
    assert not await assert_fleet_is_that_of_the_history(database, minute(0), minute(1440))


async def test_most_of_a_fleet_takes_no_closer_look(database: asyncpg.Connection) -> None:
    for number in range(5):
        for kind, kwh in ((METER, 0.1), (VEHICLE, 0.09)):
            await store(database, kind, f"d{number}", series([kwh] * 300))
        await pair(database, f"d{number}", f"d{number}", minute(-10), minute(200) if number == 3 else None)
    await roll_up(database)
    await store(database, METER, "d4", [(70.5, 1.0)])

    summable = await find_summable(database, minute(0), minute(240), RULES.power_max_kw)
    assert summable == Summable(minute(0), minute(240), ["d4"], [], tame=[])
    sums = await sum_fleet(database, minute(0), minute(240), 0.85, 1.0, 0.5, 500, 10, summable)

    assert (sorted(sums.odd_vehicles), sorted(sums.odd_meters)) == (["d3", "d4"], ["d3", "d4"])
    assert (sums.verdicts, len(sums.worst)) == ({"ok": 3}, 3)
    assert [sums.ac_kwh, sums.dc_kwh] == pytest.approx([72, 64.8])


def lively_points(rng: random.Random, jitter: float, silences: int) -> list[Point]:
    """Seven hours of about a reading a minute, none of it late, with some silences of some minutes."""
    holes = [(at := rng.uniform(0, 400), at + rng.choice([1.5, 2.2, 7, 70])) for _ in range(silences)]
    first = rng.random()
    ats = [n + first + rng.uniform(0, jitter) for n in range(-10, 420)]
    return [(at, rng.choice([0, 0.1, 0.2])) for at in ats if not any(start < at < end for start, end in holes)]


def counted(rng: random.Random, points: list[Point], oddity: float) -> list[Point]:
    """What a counter of these amounts shows, which behaves oddly so often."""
    level, shown = 50.0, list[Point]()
    for at, kwh in points:
        level += kwh
        seen = level
        if rng.random() < oddity:
            seen = rng.choice([0.0, level * 0.5, level * 0.95, level + 1000])
            level = rng.choice([level, level, seen])
        shown.append((at, seen))
    return shown


@pytest.mark.parametrize("seed", range(6))
async def test_a_fleet_in_a_window_of_any_ends(database: asyncpg.Connection, seed: int) -> None:
    """Devices that send by the second, about once a minute, or with silences; the last hours are not rolled up."""
    rng = random.Random(seed)
    for number in range(36):
        device_id = f"d{number:02}"
        for kind in KINDS:
            points = lively_points(rng, jitter=[0, 0.002, 0.3, 0.9][number % 4], silences=number // 9)
            mode = rng.choice(MODES)
            await set_energy_mode(database, kind, device_id, mode)
            if mode != "interval":
                points = counted(rng, points, rng.choice([0, 0, 0.003, 0.03]))
            await store(database, kind, device_id, points)
        await pair(database, device_id, device_id, minute(-20), None)
    await roll_up(database, minute(rng.choice([302, 303, 315, 360])))

    for _ in range(12):
        start = minute(rng.choice([0, 60, rng.uniform(-5, 170)]))
        end = minute(rng.choice([300, rng.uniform(270, 300), rng.uniform(300, 360), rng.uniform(360, 418)]))
        assert await assert_fleet_is_that_of_the_history(database, start, end, worst=36)


@pytest.mark.parametrize("mode", MODES)
async def test_who_sends_about_every_minute_takes_no_closer_look(
    database: asyncpg.Connection, mode: EnergyMode
) -> None:
    rng = random.Random(1)
    for number in range(6):
        minutes = [n for n in range(-10, 420) if rng.random() > 0.02]
        points = [(n + rng.uniform(0, number / 10), 0.1 if mode == "interval" else 10 + n * 0.1) for n in minutes]
        for kind in KINDS:
            await store(database, kind, f"d{number}", points)
            await set_energy_mode(database, kind, f"d{number}", mode)
        await pair(database, f"d{number}", f"d{number}", minute(-10), None)
    await roll_up(database, minute(365))

    windows = [
        (29.7, 358.2),
        (0.1, 359.9),
        (59.1, 301.3),
        (0, 301),
        (0, 300),
        (59.9, 300.1),
        (59.99, 300.01),
        (30, 403.6),
    ]
    for start, end in ((minute(start), minute(end)) for start, end in windows):
        summable = await find_summable(database, start, end, RULES.power_max_kw)
        assert summable is not None
        sums = await sum_fleet(database, start, end, 0.85, 1.0, 0.5, 500, 10, summable)
        assert (sums.odd_vehicles, sums.odd_meters) == ([], [])
        assert sum(sums.verdicts.values()) == 6
        assert await assert_fleet_is_that_of_the_history(database, start, end)


async def test_a_step_from_before_the_edge_that_makes_its_cadence(database: asyncpg.Connection) -> None:
    for kind in KINDS:
        await store(database, kind, "d", [(56.9, 0.1), (58.1, 0.1), (59.6, 0.1), *series([0.1] * 80, first=62)])
    await pair(database, "d", "d", minute(-10), None)
    await roll_up(database)
    assert await assert_fleet_is_that_of_the_history(database, minute(57.95), minute(120))


@pytest.mark.parametrize(
    ("start", "end", "odd"),
    [
        (30, 330, (310, 1000.0)),  # a jump behind the full hours, which stays
        (30, 330, (310, -3.0)),  # a dip
        (30, 330, (299.5, -3.0)),  # a dip in the last full hour
        (30, 330, (40, -3.0)),
        (30, 330, (0, 1000.0)),  # a jump in the hour of the start
        (61, 330, (45, -3.0)),  # a dip in the hour before the start, which its own hour has not made good
        (30, 330, (29.5, -100.0)),  # a reset
    ],
)
async def test_a_counter_that_does_not_only_rise(
    database: asyncpg.Connection, start: float, end: float, odd: tuple[float, float]
) -> None:
    points = [(n + 0.25, 1000 + n * 0.1 + (odd[1] if n + 0.25 > odd[0] else 0)) for n in range(-90, 420)]
    for kind in KINDS:
        await store(database, kind, "d", points)
        await set_energy_mode(database, kind, "d", "register")
    await pair(database, "d", "d", minute(-95), None)
    await roll_up(database, minute(365))
    assert await assert_fleet_is_that_of_the_history(database, minute(start), minute(end))


async def test_a_counter_whose_last_reading_before_the_edge_is_some_minutes_old(database: asyncpg.Connection) -> None:
    points = [(n + 0.25, 10 + n * 0.1) for n in range(420) if not 20 < n < 31]
    for kind in KINDS:
        await store(database, kind, "d", points)
        await set_energy_mode(database, kind, "d", "register")
    await pair(database, "d", "d", minute(-95), None)
    await roll_up(database)
    assert await assert_fleet_is_that_of_the_history(database, minute(30.5), minute(330))


async def test_a_fleet_whose_first_day_is_dropped_before_its_hours(database: asyncpg.Connection) -> None:
    for kind in KINDS:
        await store(database, kind, "d", series([0.1] * 4000))
    await pair(database, "d", "d", minute(-95), None)
    await roll_up(database)
    for kind in KINDS:
        await database.execute(f"DELETE FROM {kind.name}_day WHERE day < $1", minute(1440))
    assert await assert_fleet_is_that_of_the_history(database, minute(600), minute(2040))


async def test_a_fleet_with_so_much_before_the_window_that_digits_are_lost(database: asyncpg.Connection) -> None:
    for kind in KINDS:
        await store(database, kind, "d", [(n + 0.1, 1e9 if n < 600 else 0.123456) for n in range(900)])
    await pair(database, "d", "d", minute(-95), None)
    await roll_up(database)
    assert await assert_fleet_is_that_of_the_history(database, minute(600), minute(780))


# Case by case.


@pytest.fixture
async def pair_of_three_days(database: asyncpg.Connection) -> asyncpg.Connection:
    """A vehicle and its meter, a reading a minute for three days, the meter's a register; rolled up."""
    await store(database, METER, "m", series([100 + n / 10 for n in range(4320)]))
    await set_energy_mode(database, METER, "m", "register")
    await store(database, VEHICLE, "v", series([0.09] * 4320))
    await pair(database, "v", "m", minute(-5), None)
    await roll_up(database)
    return database


class Watching:
    """A connection that remembers which tables its statements read."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._connection, name)

        def watched(statement: str, *arguments: Any) -> Any:
            words = statement.replace(";", " ").split()
            self.read |= {word for word in words if word.endswith(("_reading", "_hour", "_day"))}
            return method(statement, *arguments)

        return watched


@pytest.mark.parametrize(
    ("start", "end", "read"),
    [
        (0, 4320, {"meter_day", "vehicle_day"}),
        (60, 1380, {"meter_hour", "vehicle_hour"}),
        (60, 4260, {"meter_day", "vehicle_day", "meter_hour", "vehicle_hour"}),
        (30, 1380, {"meter_hour", "vehicle_hour", "meter_reading", "vehicle_reading"}),
        (5, 25, {"meter_reading", "vehicle_reading"}),
    ],
)
async def test_whole_hours_and_days_come_from_the_rollups_and_only_edges_from_the_history(
    pair_of_three_days: asyncpg.Connection, start: int, end: int, read: set[str]
) -> None:
    watching = Watching(pair_of_three_days)

    answer = await measure(watching, "v", minute(start), minute(end))

    assert watching.read == read
    assert_same(answer, await measure_from_history(pair_of_three_days, "v", minute(start), minute(end)))
    assert answer.dc_kwh == pytest.approx((end - start) * 0.09)
    assert answer.ac_kwh == pytest.approx((end - max(start, 1)) * 0.1)


async def test_nothing_is_rolled_up_before_its_hour_has_ended(database: asyncpg.Connection) -> None:
    await store(database, METER, "m", series([1.0] * 130))

    await roll_up(database, minute(119) + GRACE)
    assert await database.fetchval("SELECT max(hour) FROM meter_hour") == minute(0)

    await roll_up(database, minute(120) + GRACE)
    assert await database.fetchval("SELECT max(hour) FROM meter_hour") == minute(60)
    assert lag(await rollup_state(database, METER), minute(179) + GRACE) == timedelta()
    assert lag(await rollup_state(database, METER), minute(300) + GRACE) == 3 * HOUR


async def test_the_present_of_a_new_database_is_rolled_up_at_once(database: asyncpg.Connection) -> None:
    await roll_up(database, START)
    assert (await rollup_state(database, METER)).rolled_through == START - HOUR
    assert await database.fetchval("SELECT count(*) FROM meter_hour") == 0


async def test_a_late_reading_is_in_the_answer_before_and_after_it_is_rolled_up(
    pair_of_three_days: asyncpg.Connection,
) -> None:
    await store(pair_of_three_days, VEHICLE, "v", [(700.5, 5.0)])

    for _ in range(2):
        assert (await measure(pair_of_three_days, "v", minute(0), minute(4320))).dc_kwh == 393.8
        await roll_up(pair_of_three_days)
    assert await pair_of_three_days.fetchval("SELECT count(*) FROM vehicle_late") == 0
    await assert_cells_are_those_of_the_history(pair_of_three_days, VEHICLE)


async def test_a_batch_with_many_late_readings_marks_hours_and_not_devices(database: asyncpg.Connection) -> None:
    await store(database, METER, "m0", series([1.0] * 60))
    await roll_up(database, minute(185))
    received_at = minute(1)
    rows = [(f"m{n}", minute(30.5), 1.0, 230.0, received_at, b"") for n in range(1001)]
    await copy(database, METER, sort(rows), Days())
    assert [tuple(row) for row in await database.fetch("SELECT meter_id, hour FROM meter_late")] == [("", minute(0))]
    await pair(database, "v", "m0", minute(0), None)
    await pair(database, "w", "m1000", minute(0), None)

    for _ in range(2):
        assert (await measure(database, "v", minute(0), minute(60))).ac_kwh == 61
        assert (await measure(database, "w", minute(0), minute(60))).ac_kwh == 1
        await roll_up(database, minute(185))
    await assert_cells_are_those_of_the_history(database, METER)


async def test_one_device_with_a_long_backlog_marks_itself_and_no_other(database: asyncpg.Connection) -> None:
    await roll_up(database)
    await store(database, METER, "m", series([1.0] * 1100, first=-30_000, every=60))
    assert await database.fetchval("SELECT count(*) FROM meter_late WHERE meter_id = 'm'") == 1100
    assert await database.fetchval("SELECT count(*) FROM meter_late WHERE meter_id = ''") == 0


async def test_a_rebuild_waits_for_the_hour_that_is_being_rolled_up(
    pair_of_three_days: asyncpg.Connection,
) -> None:
    database = pair_of_three_days
    await database.execute("UPDATE rollup_state SET rolled_device = 'a'")
    assert await rebuild(database, METER, "", START, RULES.power_max_kw) is None


async def test_a_device_that_was_silent_for_days_counts_what_came_meanwhile(database: asyncpg.Connection) -> None:
    await store(database, METER, "m", [(0, 100.0), (1, 100.5), (5 * 1440, 107.0)])
    await set_energy_mode(database, METER, "m", "register")
    await pair(database, "v", "m", minute(-5), None)

    for _ in range(2):
        assert (await measure(database, "v", minute(0), minute(6 * 1440))).ac_kwh == 7
        assert (await measure(database, "v", minute(5 * 1440), minute(6 * 1440))).ac_kwh == 6.5
        await roll_up(database)


async def test_rollups_outlive_the_readings_and_know_every_mode(pair_of_three_days: asyncpg.Connection) -> None:
    database = pair_of_three_days
    before = await measure(database, "v", minute(0), minute(4320))
    for kind in KINDS:
        assert await first_day_needed(database, kind) > minute(4320).date()
        await keep_history_from(database, kind, minute(4320).date())
        await drop_before(database, kind.history_table, minute(4320).date())

    assert_same(await measure(database, "v", minute(0), minute(4320)), before)
    await set_energy_mode(database, METER, "m", "interval")
    assert (await measure(database, "v", minute(0), minute(4320))).ac_kwh == pytest.approx(
        sum(100 + n / 10 for n in range(4320))
    )


async def test_cells_whose_readings_were_dropped_stay_whatever_comes(pair_of_three_days: asyncpg.Connection) -> None:
    database = pair_of_three_days
    for kind in KINDS:
        await keep_history_from(database, kind, minute(4320).date())
        await drop_before(database, kind.history_table, minute(4320).date())
    before = await measure(database, "v", minute(0), minute(4320))

    await store(database, VEHICLE, "v", [(700.5, 5.0)])  # RETENTION_DAYS was made longer, say
    await roll_up(database)
    assert await rebuild(database, VEHICLE, "", START, RULES.power_max_kw) == []

    assert_same(await measure(database, "v", minute(0), minute(4320)), before)


async def test_readings_that_are_not_rolled_up_are_still_needed(database: asyncpg.Connection) -> None:
    await store(database, METER, "m", series([1.0] * 130))
    await roll_up(database, minute(120) + GRACE)
    assert await first_day_needed(database, METER) == START.date()
    await roll_up(database)
    assert await first_day_needed(database, METER) == (LATER - HOUR).date()
    await store(database, METER, "m", [(0.5, 1.0)])
    assert await first_day_needed(database, METER) == START.date()


async def test_a_rebuild_mends_what_somebody_broke(pair_of_three_days: asyncpg.Connection) -> None:
    database = pair_of_three_days
    await database.execute("UPDATE meter_hour SET kwh_register = 7, day_kwh_session = 3, samples = 2")
    await database.execute("DELETE FROM meter_day")

    for day in range(3):
        assert await rebuild(database, METER, "", START + day * DAY, RULES.power_max_kw) == ["m"]
        assert await rebuild(database, METER, "m", START + day * DAY, RULES.power_max_kw) == []

    await assert_cells_are_those_of_the_history(database, METER)


async def test_another_power_is_answered_from_the_history_until_all_is_made_anew(
    pair_of_three_days: asyncpg.Connection,
) -> None:
    database = pair_of_three_days
    rules = Rules(power_max_kw=5)  # 0.1 kWh a minute are 6 kW
    for _ in range(2):
        answer = await performance(database, "v", minute(0), minute(4320), rules)
        assert answer is not None
        assert (answer.ac_kwh, answer.flags.impossible_steps) == (0, 4319)
        assert await restart(database, METER, START, 5)
        await roll_up(database)


async def test_the_power_of_the_first_cells_is_that_of_the_daemon(database: asyncpg.Connection) -> None:
    assert await agree_on_power(database, METER, 22) == 22
    await roll_up(database)
    assert await agree_on_power(database, METER, 350) == 22


async def test_one_at_a_time_does_a_step(database: asyncpg.Connection, database_url: str, connected: Connect) -> None:
    other = await connected(database_url)
    await store(database, METER, "m", series([1.0] * 60))
    async with transaction(other):
        assert await take_turn(other, "rollups of meters")
        assert not await step(database, METER, LATER)
        assert await rebuild(database, METER, "", START, RULES.power_max_kw) is None
    assert await step(database, METER, LATER)


async def test_whoever_stores_while_hours_are_closed_is_seen_or_leaves_a_mark(
    database: asyncpg.Connection, database_url: str, connected: Connect
) -> None:
    """Eight writers and a roller at once: whatever the order, nothing is missing in the end."""
    now = START
    stored = 0

    async def write(number: int) -> None:
        nonlocal stored
        connection = await connected(database_url)
        for n in range(60):
            await store(connection, METER, f"m{number}", [(number / 10 + n * 4, 1.0)])
            stored += 1

    async def roll() -> None:
        nonlocal now
        while stored < 8 * 60:
            now = START + stored / 480 * 4 * HOUR + HOUR
            await step(database, METER, now)
            await asyncio.sleep(0)

    await asyncio.gather(roll(), *(write(number) for number in range(8)))
    assert await database.fetchval("SELECT count(*) FROM meter_hour") > 0
    await roll_up(database)
    await assert_cells_are_those_of_the_history(database, METER)
    assert await database.fetchval("SELECT sum(kwh_interval) FROM meter_hour") == 480
