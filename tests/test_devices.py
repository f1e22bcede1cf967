"""Devices: energy modes, hints, live state and history."""

import math
from datetime import UTC, datetime, timedelta
from itertools import accumulate, cycle, islice

import asyncpg
import pytest

from sql.devices import (
    CHUNK_READINGS,
    Device,
    EnergyMode,
    MeterHistory,
    MeterStatus,
    VehicleHistory,
    VehicleStatus,
    get_device,
    get_status,
    list_readings,
    list_status,
    set_energy_mode,
    stream_readings,
    suspect,
)
from sql.partitions import Days
from sql.store import METER, VEHICLE, Kind, Row, copy, sort

START = datetime(2024, 5, 1, 22, tzinfo=UTC)
RECEIVED = datetime(2024, 5, 2, 12, tzinfo=UTC)
kinds = pytest.mark.parametrize("kind", [METER, VEHICLE], ids=lambda kind: kind.name)


@pytest.fixture
async def database(shared: asyncpg.Connection) -> asyncpg.Connection:
    """The database of this file, emptied."""
    await shared.execute("TRUNCATE device, meter_status, vehicle_status, meter_reading, vehicle_reading")
    return shared


def minute(number: int) -> datetime:
    return START + timedelta(minutes=number)


def rows(kind: Kind, device_id: str, values: list[float]) -> list[Row]:
    if kind is METER:
        return [(device_id, minute(n), kwh, 230.0, RECEIVED, b"") for n, kwh in enumerate(values)]
    return [(device_id, minute(n), 50.0, kwh, 20.0, RECEIVED, b"") for n, kwh in enumerate(values)]


async def store(database: asyncpg.Connection, kind: Kind, device_id: str, values: list[float]) -> None:
    await copy(database, kind, sort(rows(kind, device_id, values)), Days())


# Energy modes.


@kinds
async def test_who_was_never_seen_and_never_configured_is_nobody(database: asyncpg.Connection, kind: Kind) -> None:
    assert await get_device(database, kind, "d1") is None
    assert await get_status(database, kind, "d1") is None


@kinds
async def test_a_device_may_be_configured_before_it_is_seen(database: asyncpg.Connection, kind: Kind) -> None:
    device = await set_energy_mode(database, kind, "d1", "register")

    assert device == Device(kind.name, "d1", "register", None, None, None)
    assert await get_device(database, kind, "d1") == device


@kinds
async def test_a_device_that_was_seen_has_the_default_mode(database: asyncpg.Connection, kind: Kind) -> None:
    await store(database, kind, "d1", [0.1] * 200)  # over midnight, so that there are two partitions

    assert await get_device(database, kind, "d1") == Device(kind.name, "d1", "interval", None, minute(0), minute(199))


async def test_a_meter_and_a_vehicle_of_one_name_are_two_devices(database: asyncpg.Connection) -> None:
    await set_energy_mode(database, METER, "d1", "register")
    await set_energy_mode(database, VEHICLE, "d1", "session")
    await set_energy_mode(database, METER, "d1", "interval")

    modes = [await get_device(database, kind, "d1") for kind in (METER, VEHICLE)]
    assert [device and device.energy_mode for device in modes] == ["interval", "session"]


async def test_an_unknown_mode_is_refused(database: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await set_energy_mode(database, METER, "d1", "lifetime")  # type: ignore[arg-type] # - that is the point


# Hints.

CHARGING = [0.18 + 0.004 * math.sin(n * n) for n in range(120)]
INTERVALS = [0.0] * 30 + CHARGING + [0.0] * 30
REGISTER = list(accumulate(INTERVALS, initial=4711.0))
NEW_REGISTER = list(accumulate(INTERVALS, initial=0.0))
ONE_SESSION = [0.0] * 30 + list(accumulate(CHARGING)) + [0.0] * 20
SESSIONS = 3 * ONE_SESSION
SESSIONS_WITHOUT_ZERO = 3 * list(accumulate(CHARGING))
NOISY_INTERVALS = list(islice(cycle([0.1, 0.4, 0.2, 0.3]), 100))

LOOKS: list[tuple[str, list[float], EnergyMode | None]] = [
    ("intervals", INTERVALS, "interval"),
    ("noisy intervals", NOISY_INTERVALS, "interval"),
    ("a register", REGISTER, "register"),
    ("a register that was reset", REGISTER + NEW_REGISTER, None),
    ("a register from zero on", NEW_REGISTER, None),
    ("a register that dips and comes back", [*REGISTER, 4711.0, *REGISTER[-3:]], None),
    ("a register that trembles", [1000 + value for value in NOISY_INTERVALS], None),
    ("sessions", SESSIONS, "session"),
    ("sessions that restart without a zero", SESSIONS_WITHOUT_ZERO, "session"),
    ("one session", ONE_SESSION, None),
    ("nothing", [], None),
    ("one value", [4711.0], None),
    ("a value that stands still", [4711.0] * 500, None),
    ("zeros", [0.0] * 500, None),
    ("too few steps", REGISTER[25:45], None),
    ("a value that only falls", REGISTER[::-1], None),
]


@pytest.mark.parametrize(("values", "looks"), [case[1:] for case in LOOKS], ids=[case[0] for case in LOOKS])
@pytest.mark.parametrize("energy_mode", ["interval", "register", "session"])
def test_a_hint_is_given_only_where_it_is_clear_and_new(
    values: list[float], looks: EnergyMode | None, energy_mode: EnergyMode
) -> None:
    assert suspect(values, energy_mode) == (None if looks == energy_mode else looks)


@kinds
async def test_the_hint_comes_from_the_readings_and_goes_when_the_mode_is_corrected(
    database: asyncpg.Connection, kind: Kind
) -> None:
    await store(database, kind, "d1", REGISTER)
    await store(database, kind, "d2", NOISY_INTERVALS)

    device = await get_device(database, kind, "d1")
    assert device is not None
    assert (device.energy_mode, device.suspected_energy_mode) == ("interval", "register")
    assert (await set_energy_mode(database, kind, "d1", "register")).suspected_energy_mode is None
    assert (await set_energy_mode(database, kind, "d1", "session")).suspected_energy_mode == "register"


# Live state.


async def test_live_state_of_a_meter(database: asyncpg.Connection) -> None:
    await store(database, METER, "m1", [1.0, 2.0])
    await set_energy_mode(database, METER, "m1", "register")
    now = await database.fetchval("SELECT now()")

    status = await get_status(database, METER, "m1")

    assert isinstance(status, MeterStatus)
    assert abs(status.age_s - (now - minute(1)).total_seconds()) < 30
    assert status == MeterStatus(
        id="m1",
        ts=minute(1),
        age_s=status.age_s,
        received_at=RECEIVED,
        energy_mode="register",
        kwh_consumed_ac=2.0,
        voltage=230.0,
    )


async def test_live_state_of_a_vehicle_ahead_of_time_has_no_age(database: asyncpg.Connection) -> None:
    ahead = (await database.fetchval("SELECT now()")) + timedelta(minutes=4)
    await copy(database, VEHICLE, sort([("v1", ahead, 50.0, 0.5, -3.0, RECEIVED, b"")]), Days())

    assert await get_status(database, VEHICLE, "v1") == VehicleStatus(
        id="v1",
        ts=ahead,
        age_s=0,
        received_at=RECEIVED,
        energy_mode="interval",
        soc=50.0,
        kwh_delivered_dc=0.5,
        battery_temp=-3.0,
    )


@kinds
async def test_live_state_comes_in_pages(database: asyncpg.Connection, kind: Kind) -> None:
    devices = ["A", "Z", "a", "b-1", "b.1", "b1"]  # in the order of bytes: - . 1
    for device_id in reversed(devices):
        await store(database, kind, device_id, [1.0])

    listed: list[str] = []
    while page := await list_status(database, kind, after=listed[-1] if listed else None, limit=4):
        listed += [status.id for status in page]

    assert listed == devices


# History.


async def test_history_of_a_meter_is_what_came(database: asyncpg.Connection) -> None:
    await store(database, METER, "m1", [1.0, 2.0, 3.0, 4.0])
    await store(database, METER, "m2", [9.0] * 4)

    readings = await list_readings(database, METER, "m1", minute(1), minute(3), after=None, limit=10)

    assert readings == [
        MeterHistory(minute(1), RECEIVED, 2.0, 230.0),
        MeterHistory(minute(2), RECEIVED, 3.0, 230.0),
    ]


@pytest.mark.parametrize("limit", [1, 7, 200])
async def test_history_comes_in_pages_and_across_days(database: asyncpg.Connection, limit: int) -> None:
    await store(database, VEHICLE, "v1", [float(n) for n in range(200)])

    listed: list[VehicleHistory | MeterHistory] = []
    after = None
    while page := await list_readings(database, VEHICLE, "v1", START, minute(200), after=after, limit=limit):
        assert len(page) <= limit
        listed += page
        after = page[-1].ts

    assert listed == [VehicleHistory(minute(n), RECEIVED, 50.0, float(n), 20.0) for n in range(200)]


async def test_a_page_behind_a_time_before_the_range_begins_with_the_range(database: asyncpg.Connection) -> None:
    await store(database, METER, "m1", [1.0, 2.0, 3.0])
    readings = await list_readings(database, METER, "m1", minute(1), minute(9), after=minute(-5), limit=1)
    assert [reading.ts for reading in readings] == [minute(1)]


@pytest.mark.parametrize("count", [0, 1, CHUNK_READINGS, CHUNK_READINGS + 1, 3 * CHUNK_READINGS - 1])
async def test_history_streams_in_chunks(database: asyncpg.Connection, count: int) -> None:
    if count:
        await store(database, METER, "m1", [float(n) for n in range(count)])

    chunks = [chunk async for chunk in stream_readings(database, METER, "m1", START, minute(count))]

    assert [len(chunk) for chunk in chunks] == [
        min(CHUNK_READINGS, count - first) for first in range(0, count, CHUNK_READINGS)
    ]
    assert [reading.ts for chunk in chunks for reading in chunk] == [minute(n) for n in range(count)]


async def test_a_stream_that_is_left_frees_the_connection(database: asyncpg.Connection) -> None:
    await store(database, METER, "m1", [1.0] * 2500)
    stream = stream_readings(database, METER, "m1", START, minute(2500))
    assert len(await anext(stream)) == CHUNK_READINGS

    await stream.aclose()

    assert not database.is_in_transaction()
