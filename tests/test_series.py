"""Points are the performance of their buckets, whatever the clock does there and wherever the cells come from."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from msgspec.structs import asdict

from sql import rollups
from sql import series as series_module
from sql.analytics import Rules, performance, performances
from sql.devices import EnergyMode, set_energy_mode
from sql.links import pair
from sql.partitions import Days
from sql.series import PerformanceSeries, Point, Step, buckets, default_start, series
from sql.store import METER, VEHICLE, Kind, copy, sort

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
START = datetime(2026, 3, 27, tzinfo=UTC)
"""Two days before the clocks of Europe are moved."""
RULES = Rules()
VEHICLE_ID = "v-1"


# Where buckets begin and end, by the local clock.


def shown(zone: str, step: Step, start: str, end: str) -> list[str]:
    """The buckets of a window as the local clock shows their beginnings, each with its length."""
    local = ZoneInfo(zone)
    found = list(buckets(datetime.fromisoformat(start), datetime.fromisoformat(end), step, local))
    assert [after for _, after in found[:-1]] == [start for start, _ in found[1:]]
    return [f"{start.astimezone(local):%d %H:%M%z} {end - start}" for start, end in found]


def test_a_local_day_has_23_or_25_hours_when_clocks_are_moved() -> None:
    assert shown("Europe/Berlin", "day", "2026-03-27T23:00Z", "2026-03-30T22:00Z") == [
        "28 00:00+0100 1 day, 0:00:00",
        "29 00:00+0100 23:00:00",
        "30 00:00+0200 1 day, 0:00:00",
    ]
    assert shown("Europe/Berlin", "day", "2026-10-24T22:00Z", "2026-10-26T23:00Z") == [
        "25 00:00+0200 1 day, 1:00:00",
        "26 00:00+0100 1 day, 0:00:00",
    ]


def test_an_hour_that_comes_twice_is_two_and_one_that_is_left_out_is_none() -> None:
    assert shown("Europe/Berlin", "hour", "2026-10-24T23:00Z", "2026-10-25T03:00Z") == [
        "25 01:00+0200 1:00:00",
        "25 02:00+0200 1:00:00",
        "25 02:00+0100 1:00:00",
        "25 03:00+0100 1:00:00",
    ]
    assert shown("Europe/Berlin", "hour", "2026-03-29T00:00Z", "2026-03-29T02:00Z") == [
        "29 01:00+0100 1:00:00",
        "29 03:00+0200 1:00:00",
    ]


def test_the_first_and_the_last_bucket_are_cut_to_the_window() -> None:
    assert shown("UTC", "hour", "2026-03-01T10:59:30.25Z", "2026-03-01T12:00:01Z") == [
        "01 10:59+0000 0:00:29.750000",
        "01 11:00+0000 1:00:00",
        "01 12:00+0000 0:00:01",
    ]
    assert shown("UTC", "day", "2026-03-01T10:00Z", "2026-03-01T12:00Z") == ["01 10:00+0000 2:00:00"]


def test_zones_may_be_off_by_parts_of_an_hour() -> None:
    assert shown("Asia/Kathmandu", "hour", "2026-03-01T10:00Z", "2026-03-01T11:30Z") == [
        "01 15:45+0545 0:15:00",
        "01 16:00+0545 1:00:00",
        "01 17:00+0545 0:15:00",
    ]
    assert shown("Asia/Kolkata", "day", "2026-03-01T18:30Z", "2026-03-02T19:30Z") == [
        "02 00:00+0530 1 day, 0:00:00",
        "03 00:00+0530 1:00:00",
    ]


def test_clocks_may_be_moved_by_half_an_hour() -> None:
    assert shown("Australia/Lord_Howe", "hour", "2026-04-04T14:00Z", "2026-04-04T16:30Z") == [
        "05 01:00+1100 1:00:00",
        "05 01:30+1030 0:30:00",
        "05 02:00+1030 1:00:00",
    ]
    assert shown("Australia/Lord_Howe", "hour", "2026-10-03T14:30Z", "2026-10-03T17:00Z") == [
        "04 01:00+1030 1:00:00",
        "04 02:30+1100 0:30:00",
        "04 03:00+1100 1:00:00",
    ]
    assert shown("Australia/Lord_Howe", "day", "2026-10-03T13:30Z", "2026-10-04T13:00Z") == [
        "04 00:00+1030 23:30:00",
    ]


def test_a_date_that_is_left_out_has_no_bucket() -> None:
    assert shown("Pacific/Apia", "day", "2011-12-29T10:00Z", "2012-01-01T10:00Z") == [
        "29 00:00-1000 1 day, 0:00:00",
        "31 00:00+1400 1 day, 0:00:00",
        "01 00:00+1400 1 day, 0:00:00",
    ]


def test_a_midnight_that_is_left_out_or_comes_twice_begins_one_day() -> None:
    assert shown("America/Sao_Paulo", "day", "2018-11-03T03:00Z", "2018-11-05T02:00Z") == [
        "03 00:00-0300 1 day, 0:00:00",
        "04 01:00-0200 23:00:00",
    ]
    assert shown("America/St_Johns", "day", "2010-11-06T02:30Z", "2010-11-08T03:30Z") == [
        "06 00:00-0230 1 day, 0:00:00",
        "07 00:00-0230 1 day, 1:00:00",
    ]


@pytest.mark.parametrize(
    ("step", "end", "start"),
    [
        ("hour", "2026-03-29T12:34Z", "2026-03-28T12:34Z"),
        ("day", "2026-03-29T12:34Z", "2026-02-27T23:00Z"),
        ("day", "2026-03-29T22:00Z", "2026-02-27T23:00Z"),
    ],
)
def test_a_window_that_is_not_said_has_24_hours_or_30_local_days(step: Step, end: str, start: str) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    found = default_start(datetime.fromisoformat(end), step, berlin)
    assert found == datetime.fromisoformat(start)
    assert len(list(buckets(found, datetime.fromisoformat(end), step, berlin))) == (25 if step == "hour" else 30)


# What points say.


async def store(
    database: asyncpg.Connection, kind: Kind, device_id: str, readings: list[tuple[datetime, float]]
) -> None:
    rows = [
        (device_id, ts, kwh, 230.0, START, b"") if kind is METER else (device_id, ts, 50.0, kwh, 20.5, START, b"")
        for ts, kwh in readings
    ]
    await copy(database, kind, sort(rows), Days())


async def roll_up(database: asyncpg.Connection, now: datetime) -> None:
    for kind in rollups.KINDS:
        while await rollups.step(database, kind, now):
            pass


async def points_of(
    database: asyncpg.Connection, start: datetime, end: datetime, step: Step, zone: str
) -> PerformanceSeries:
    found = await series(database, VEHICLE_ID, start, end, RULES, step, ZoneInfo(zone))
    assert found is not None
    return found


async def check(database: asyncpg.Connection, start: datetime, end: datetime, step: Step, zone: str) -> list[Point]:
    """Points are what is said of each bucket by itself, and add up to the whole."""
    found = await points_of(database, start, end, step, zone)
    assert [(point.start, point.end) for point in found.points] == list(buckets(start, end, step, ZoneInfo(zone)))
    for point in found.points:
        alone = await performances(database, VEHICLE_ID, [(point.start, point.end)], RULES)
        assert alone is not None
        assert asdict(point) == {name: getattr(alone[0], name) for name in Point.__struct_fields__}
    whole = await performance(database, VEHICLE_ID, start, end, RULES)
    assert whole is not None
    assert sum(point.ac_kwh for point in found.points) == whole.ac_kwh
    assert sum(point.dc_kwh_unlinked for point in found.points) == whole.dc_kwh_unlinked
    linked = [point for point in found.points if point.status != "unlinked"]
    assert sum(point.dc_kwh for point in (linked if whole.status != "unlinked" else found.points)) == whole.dc_kwh
    assert sum(point.samples for point in found.points) == whole.samples
    assert sum(point.meter_samples for point in found.points) == whole.meter_samples
    return found.points


def readings(
    chance: random.Random, mode: EnergyMode, first: datetime, behind: datetime
) -> Iterator[tuple[datetime, float]]:
    """What a device of the mode sends, with silences, resets, dips and glitches; sums of its kWh have no rounding."""
    cadence = chance.choice([1, 5, 15]) * MINUTE
    ts, level = first, 640.0 if mode == "register" else 0.0
    while ts < behind:
        amount = chance.choice([0, 0, 1, 2, 3]) / 64
        level = max(0.0, level + amount)
        odd = chance.random()
        if mode == "interval":
            yield ts, amount
        elif odd < 0.02:
            yield ts, 0.0
        elif odd < 0.04:
            yield ts, max(0.0, level - 5 / 64)
        else:
            if odd > 0.99 or (mode == "session" and odd > 0.96):
                level = amount
            yield ts, level
        ts += cadence
        if chance.random() < 0.02:
            ts += chance.choice([1, 7, 55, 200, 1000]) * MINUTE


async def random_fleet(database: asyncpg.Connection, chance: random.Random, end: datetime) -> list[tuple[Any, ...]]:
    """A vehicle with links that change within hours, and two meters. Returns the readings that have not come yet."""
    late = []
    for kind, device_id in ((VEHICLE, VEHICLE_ID), (METER, "m-1"), (METER, "m-2")):
        mode = chance.choice(get_args(EnergyMode))
        await set_energy_mode(database, kind, device_id, mode)
        sent = list(readings(chance, mode, START - 30 * HOUR, end + 3 * HOUR))
        held_back = {chance.randrange(len(sent)) for _ in range(5)}
        await store(database, kind, device_id, [one for n, one in enumerate(sent) if n not in held_back])
        late += [(kind, device_id, [sent[n]]) for n in sorted(held_back)]
    linked_to = START - 20 * HOUR
    while linked_to < end:
        linked_from = linked_to + chance.choice([0, 0, 7, 60, 700]) * MINUTE
        linked_to = linked_from + chance.choice([13, 60, 95, 600, 2000]) * MINUTE
        await pair(database, VEHICLE_ID, chance.choice(["m-1", "m-2"]), linked_from, linked_to)
    return late


@pytest.mark.parametrize("seed", range(6))
async def test_points_are_the_performance_of_their_buckets(database: asyncpg.Connection, seed: int) -> None:
    chance = random.Random(seed)
    step: Step = "day" if seed % 3 == 0 else "hour"
    start = START + chance.choice([0, 13, 35.5]) * HOUR + chance.choice([0, 17]) * MINUTE
    end = start + (80 if step == "day" else 17) * HOUR + chance.choice([0, 29]) * MINUTE
    zone = ["Europe/Berlin", "Asia/Kolkata", "UTC", "UTC", "Australia/Lord_Howe", "Europe/Berlin"][seed]
    late = await random_fleet(database, chance, end)

    from_history = await check(database, start, end, step, zone)
    for now in (start + (end - start) / 2, end + HOUR):
        await roll_up(database, now)
        assert await check(database, start, end, step, zone) == from_history
    for kind, device_id, one in late:
        await store(database, kind, device_id, one)
    repaired = await check(database, start, end, step, zone)
    await roll_up(database, end + HOUR)
    assert await check(database, start, end, step, zone) == repaired != from_history


async def test_what_a_silence_of_more_than_a_month_comes_to_is_in_no_point(database: asyncpg.Connection) -> None:
    await set_energy_mode(database, VEHICLE, VEHICLE_ID, "register")
    back = START + 40 * 24 * HOUR
    for first in (START, back):
        days = (first - START) / HOUR
        await store(database, VEHICLE, VEHICLE_ID, [(first + n * MINUTE, 640 + days + n / 64) for n in range(90)])

    points = await check(database, START, back + 2 * HOUR, "day", "UTC")
    assert sum(point.dc_kwh for point in points) == 2 * 89 / 64
    await roll_up(database, back + 3 * HOUR)
    assert await check(database, START, back + 2 * HOUR, "day", "UTC") == points


async def queries_of(database: asyncpg.Connection, hours: int, step: Step, zone: str) -> int:
    asked: list[str] = []
    with database.query_logger(lambda query: asked.append(query.query)):
        await points_of(database, START, START + hours * HOUR, step, zone)
    return len(asked)


async def test_more_points_cost_no_more_queries(database: asyncpg.Connection) -> None:
    for kind, device_id in ((METER, "m-1"), (VEHICLE, VEHICLE_ID)):
        await set_energy_mode(database, kind, device_id, "register")
        sent = [(START + n * 10 * MINUTE, 640 + n / 64) for n in range(-6, 900)]
        await store(database, kind, device_id, sent)
    await pair(database, VEHICLE_ID, "m-1", START - HOUR, None)
    asked: list[tuple[Step, str]] = [("hour", "UTC"), ("hour", "Asia/Kolkata"), ("day", "Europe/Berlin")]
    await queries_of(database, 30, "hour", "UTC")  # the driver asks for types once
    for step, zone in asked:
        assert await queries_of(database, 144, step, zone) == await queries_of(database, 30, step, zone)
    await roll_up(database, START + 160 * HOUR)
    for step, zone in asked:
        assert await queries_of(database, 144, step, zone) == await queries_of(database, 30, step, zone)


async def test_a_long_series_is_computed_in_turns(
    database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = START + 20 * HOUR
    await random_fleet(database, random.Random(0), end)
    at_once = await check(database, START, end, "hour", "UTC")
    monkeypatch.setattr(series_module, "BUCKETS_A_TURN", 3)
    assert await check(database, START, end, "hour", "UTC") == at_once


async def test_nobody_has_no_series(database: asyncpg.Connection) -> None:
    assert await series(database, "v-2", START, START + HOUR, RULES, "hour", ZoneInfo("UTC")) is None
