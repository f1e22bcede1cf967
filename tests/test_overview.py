"""A whole fleet at a glance, in the database: who was heard from, who is silent, and what every hour lost."""

from datetime import timedelta

import asyncpg
import pytest

from sql.analytics import Rules, fleet
from sql.devices import set_energy_mode
from sql.hours import HOUR
from sql.links import pair
from sql.overview import count_heard, hours_of_fleet, list_silent
from sql.rollups import step
from sql.store import METER, VEHICLE
from tests.history import START, minute, series, store

LATER = START + timedelta(days=1)


async def roll_up(database: asyncpg.Connection) -> None:
    for kind in (METER, VEHICLE):
        while await step(database, kind, LATER):
            pass


async def report(database: asyncpg.Connection, vehicle_id: str, meter_id: str, ac_kwh: float, dc_kwh: float) -> None:
    await store(database, METER, meter_id, series([ac_kwh] * 180))
    await store(database, VEHICLE, vehicle_id, series([dc_kwh] * 180))


async def test_devices_are_counted_by_when_they_were_heard_from(database: asyncpg.Connection) -> None:
    await report(database, "v1", "m1", 0.1, 0.09)
    await store(database, METER, "m2", [(0, 1.0)])
    received_at = await database.fetchval("SELECT received_at FROM meter_status WHERE meter_id = 'm2'")
    heard = await count_heard(database, received_at)
    assert (heard["meter"].known, heard["meter"].heard) == (2, 1)
    assert (heard["vehicle"].known, heard["vehicle"].heard) == (1, 0)


async def test_nobody_was_heard_from_in_an_empty_database(database: asyncpg.Connection) -> None:
    heard = await count_heard(database, START)
    assert (heard["meter"].known, heard["meter"].heard) == (0, 0)
    assert await hours_of_fleet(database, START, LATER) == []


async def test_the_longest_silence_comes_first_with_the_other_end_of_the_open_link(
    database: asyncpg.Connection,
) -> None:
    for number in (3, 1, 2):  # received one after the other
        await store(database, VEHICLE, f"v{number}", [(number, 0.5)])
    await store(database, VEHICLE, "other", [(1, 0.5)])
    await pair(database, "v1", "m9", START, None)
    await pair(database, "v2", "m8", START, minute(5))
    silent = await list_silent(database, VEHICLE, "v", 2)
    assert [(one.id, one.linked_with) for one in silent] == [("v3", None), ("v1", "m9")]
    assert silent[1].values == {"soc": 50.0, "kwh_delivered_dc": 0.5, "battery_temp": 20.0}
    assert [one.id for one in await list_silent(database, VEHICLE, "v2", 9)] == ["v2"]
    assert [one.linked_with for one in await list_silent(database, METER, "", 9)] == []


async def test_a_prefix_is_no_pattern(database: asyncpg.Connection) -> None:
    await store(database, VEHICLE, "v_1", [(1, 0.5)])
    await store(database, VEHICLE, "vx1", [(1, 0.5)])
    assert [one.id for one in await list_silent(database, VEHICLE, "v_", 9)] == ["v_1"]


async def test_the_hours_of_the_fleet_add_up_to_its_sums(database: asyncpg.Connection) -> None:
    await report(database, "v1", "m1", 0.1, 0.09)
    await report(database, "v2", "m2", 0.2, 0.1)
    for number in (1, 2):
        await pair(database, f"v{number}", f"m{number}", START - HOUR, None)
    await roll_up(database)
    hours = await hours_of_fleet(database, START, START + 3 * HOUR)
    sums = await fleet(database, START, START + 3 * HOUR, Rules(), 0)
    assert [hour.hour for hour in hours] == [START, START + HOUR, START + 2 * HOUR]
    assert sum(hour.ac_kwh for hour in hours) == pytest.approx(sums.ac_kwh)
    assert sum(hour.dc_kwh for hour in hours) == pytest.approx(sums.dc_kwh)
    assert hours[0].ac_kwh == pytest.approx(60 * 0.3)


async def test_an_hour_counts_for_the_fleet_only_where_the_link_was_valid_throughout(
    database: asyncpg.Connection,
) -> None:
    await report(database, "v1", "m1", 0.1, 0.09)
    await pair(database, "v1", "m1", minute(30), minute(150))
    await roll_up(database)
    hours = await hours_of_fleet(database, START, START + 3 * HOUR)
    assert [hour.hour for hour in hours] == [START + HOUR]


async def test_an_hour_in_which_the_vehicle_was_silent_counts_what_its_meter_counted(
    database: asyncpg.Connection,
) -> None:
    await store(database, METER, "m1", series([0.1] * 120))
    await store(database, VEHICLE, "v1", series([0.09] * 60))
    await pair(database, "v1", "m1", START - HOUR, None)
    await roll_up(database)
    hours = await hours_of_fleet(database, START, START + 2 * HOUR)
    assert [(hour.ac_kwh, hour.dc_kwh) for hour in hours] == [pytest.approx((6.0, 5.4)), pytest.approx((6.0, 0.0))]


async def test_the_hours_of_the_fleet_read_each_device_in_its_mode(database: asyncpg.Connection) -> None:
    await store(database, METER, "m1", [(n, 100 + n / 60) for n in range(180)])
    await store(database, VEHICLE, "v1", series([0.9 / 60] * 180))
    await pair(database, "v1", "m1", START - HOUR, None)
    await set_energy_mode(database, METER, "m1", "register")
    await roll_up(database)
    hours = await hours_of_fleet(database, START + HOUR, START + 3 * HOUR)
    assert [hour.ac_kwh for hour in hours] == pytest.approx([1.0, 1.0])
    assert [hour.dc_kwh for hour in hours] == pytest.approx([0.9, 0.9])
