"""Steps are what the analytics say of them, and gauges are averages wherever they come from."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import asyncpg
import pytest

from sql import rollups
from sql.analytics import Rules, performances
from sql.chart import gauges, meter_steps, spans, vehicle_steps
from sql.hours import DAY, HOUR
from sql.links import links_of, pair
from sql.partitions import Days
from sql.store import METER, VEHICLE, Kind, copy, sort
from tests.history import START, minute, series, store

MINUTE = timedelta(minutes=1)
RULES = Rules()


def test_steps_are_those_of_utc_cut_to_the_window() -> None:
    assert spans(minute(58), minute(121), HOUR) == [
        (minute(58), minute(60)),
        (minute(60), minute(120)),
        (minute(120), minute(121)),
    ]
    assert spans(START, START + DAY, DAY) == [(START, START + DAY)]
    assert spans(minute(1), minute(2), 5 * MINUTE) == [(minute(1), minute(2))]


@pytest.mark.parametrize(
    ("length", "step"),
    [(26 * HOUR, 5 * MINUTE), (27 * HOUR, HOUR), (31 * DAY, HOUR), (32 * DAY, DAY), (366 * DAY, DAY)],
)
async def test_a_longer_window_has_longer_steps(shared: asyncpg.Connection, length: timedelta, step: timedelta) -> None:
    await store(shared, METER, f"m-{length.total_seconds()}", series([0.1] * 60))
    steps = await meter_steps(shared, f"m-{length.total_seconds()}", "interval", START, START + length, 500)
    assert steps.step == step
    assert steps.spans == spans(START, START + length, step)
    assert sum(one.kwh for one in steps.found) == pytest.approx(6)


@pytest.mark.parametrize(("cadence", "step"), [(1, 5), (2, 5), (5, 15), (15, 60), (30, 60), (60, 60)])
async def test_a_step_has_two_readings_of_a_slow_device(shared: asyncpg.Connection, cadence: int, step: int) -> None:
    meter_id, vehicle_id = f"m-each-{cadence}", f"v-each-{cadence}"
    await store(shared, METER, meter_id, series([0.1] * (1440 // cadence), every=cadence))
    await store(shared, VEHICLE, vehicle_id, series([0.1] * 1440))
    await pair(shared, vehicle_id, meter_id, START, START + DAY)

    of_meter = await meter_steps(shared, meter_id, "interval", START, START + DAY, 500)
    assert of_meter.step == step * MINUTE
    assert all(one.samples for one in of_meter.found)
    of_vehicle = await vehicle_steps(shared, vehicle_id, START, START + DAY, RULES)
    assert of_vehicle is not None
    assert of_vehicle.step == step * MINUTE
    assert of_vehicle.found == await performances(shared, vehicle_id, of_vehicle.spans, RULES)


async def test_a_silent_device_has_fine_steps(shared: asyncpg.Connection) -> None:
    await store(shared, METER, "m-silent", series([0.1]))
    steps = await meter_steps(shared, "m-silent", "interval", START + DAY, START + 2 * DAY, 500)
    assert steps.step == 5 * MINUTE
    assert not any(one.samples for one in steps.found)


async def test_nobody_has_no_steps(shared: asyncpg.Connection) -> None:
    assert await vehicle_steps(shared, "nobody", START, START + DAY, RULES) is None


# Gauges.


async def store_soc(database: asyncpg.Connection, vehicle_id: str, shown: Sequence[tuple[float, float]]) -> None:
    rows = [(vehicle_id, minute(at), soc, 0.1, soc / 2, minute(at), b"") for at, soc in shown]
    await copy(database, VEHICLE, sort(rows), Days())


async def roll_up(database: asyncpg.Connection, kind: Kind, now: datetime) -> None:
    while await rollups.step(database, kind, now):
        pass


async def test_a_gauge_is_the_average_of_each_step_and_none_in_silence(database: asyncpg.Connection) -> None:
    await store_soc(database, "v-1", [(1, 10), (2, 20), (5, 40), (16, 60), (20, 99)])
    found = await gauges(database, VEHICLE, "v-1", minute(0), minute(20), 5 * MINUTE)
    assert found == [
        {"soc": 15, "battery_temp": 7.5},
        {"soc": 40, "battery_temp": 20},
        None,
        {"soc": 60, "battery_temp": 30},
    ]


async def test_gauges_from_rollups_are_those_from_readings(database: asyncpg.Connection) -> None:
    shown = [(at, (at * 7) % 100) for at in range(0, 3 * 1440, 7) if not 600 < at < 900]
    await store_soc(database, "v-1", shown)
    asked = [(minute(13), minute(3 * 1440 - 5), step) for step in (HOUR, DAY)] + [(minute(61), minute(62), HOUR)]
    from_readings = [await gauges(database, VEHICLE, "v-1", *one) for one in asked]
    assert from_readings[0][11:14] == [None] * 3
    for now in (minute(2 * 1440 + 30), minute(4 * 1440)):
        await roll_up(database, VEHICLE, now)
        for one, expected in zip(asked, from_readings, strict=True):
            found = await gauges(database, VEHICLE, "v-1", *one)
            assert [step and step["soc"] for step in found] == pytest.approx(
                [step and step["soc"] for step in expected]
            )


async def test_full_hours_come_from_the_rollups_where_the_readings_are_gone(database: asyncpg.Connection) -> None:
    await store_soc(database, "v-1", [(at, 50) for at in range(180)])
    await roll_up(database, VEHICLE, minute(240))
    await database.execute("DELETE FROM vehicle_reading")
    found = await gauges(database, VEHICLE, "v-1", minute(30), minute(150), HOUR)
    assert found == [None, {"soc": 50, "battery_temp": 25}, None]


async def test_a_meter_has_its_voltage(database: asyncpg.Connection) -> None:
    await store(database, METER, "m-1", series([0.1] * 10))
    assert await gauges(database, METER, "m-1", START, minute(10), 5 * MINUTE) == [{"voltage": 230}] * 2


# Links.


async def test_the_newest_links_of_a_window_come_first(database: asyncpg.Connection) -> None:
    for n in range(3):
        await pair(database, "v-1", f"m-{n}", minute(60 * n), minute(60 * n + 50))
    await pair(database, "v-2", "m-1", minute(300), None)
    found = await links_of(database, VEHICLE, "v-1", minute(49), minute(120), 10)
    assert [link.meter_id for link in found] == ["m-1", "m-0"]
    assert await links_of(database, VEHICLE, "v-1", minute(50), minute(60), 10) == []
    found = await links_of(database, METER, "m-1", minute(0), minute(10_000), 1)
    assert [(link.vehicle_id, link.valid_to) for link in found] == [("v-2", None)]
