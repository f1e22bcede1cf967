"""Devices: how their kWh are to be read, their live state, and their history.

Nothing in a field named kWh tells whether it is an amount, a register or a session counter, so somebody has to say it.
`suspect` looks at what a device sent and says when that looks like another mode than the one set; when in doubt it
says nothing, since a wrong hint is worse than none.
"""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal, TypeAlias

from msgspec import Struct

from sql.pool import Connection, transaction
from sql.queries import query
from sql.store import METER, VEHICLE, Kind

EnergyMode: TypeAlias = Literal["interval", "register", "session"]

CHUNK_READINGS = 1000
SUSPECT_FROM = timedelta(days=3)
SUSPECT_READINGS = 2000
"""How far back the hint looks from the newest reading: so long, or so many readings."""
MOVES_MIN = 20
"""A device whose value changed less often gives no hint."""


class Device(Struct, frozen=True, rename="camel"):
    """What is known of a device beyond its readings."""

    kind: str
    id: str
    energy_mode: EnergyMode
    suspected_energy_mode: EnergyMode | None
    first_seen: datetime | None
    last_seen: datetime | None


class Status(Struct, frozen=True, rename="camel", kw_only=True):
    """The newest reading of a device, and how old it is."""

    id: str
    ts: datetime
    age_s: float
    received_at: datetime
    energy_mode: EnergyMode


class MeterStatus(Status, frozen=True, rename="camel", kw_only=True):
    kwh_consumed_ac: float
    voltage: float


class VehicleStatus(Status, frozen=True, rename="camel", kw_only=True):
    soc: float
    kwh_delivered_dc: float
    battery_temp: float


class MeterHistory(Struct, frozen=True, rename="camel"):
    """One reading of a meter as it came."""

    ts: datetime
    received_at: datetime
    kwh_consumed_ac: float
    voltage: float


class VehicleHistory(Struct, frozen=True, rename="camel"):
    """One reading of a vehicle as it came."""

    ts: datetime
    received_at: datetime
    soc: float
    kwh_delivered_dc: float
    battery_temp: float


STATUS_TYPES: dict[Kind, type[MeterStatus | VehicleStatus]] = {METER: MeterStatus, VEHICLE: VehicleStatus}
HISTORY_TYPES: dict[Kind, type[MeterHistory | VehicleHistory]] = {METER: MeterHistory, VEHICLE: VehicleHistory}


async def get_device(connection: Connection, kind: Kind, device_id: str) -> Device | None:
    """The device, or None where it was never seen and never configured."""
    status = await get_status(connection, kind, device_id)
    energy_mode: EnergyMode | None = await connection.fetchval(query("get_energy_mode"), kind.name, device_id)
    if status is None:
        return Device(kind.name, device_id, energy_mode, None, None, None) if energy_mode else None
    return Device(
        kind=kind.name,
        id=device_id,
        energy_mode=status.energy_mode,
        suspected_energy_mode=suspect(await _last_values(connection, kind, status), status.energy_mode),
        first_seen=await connection.fetchval(kind.query("find_first_reading"), device_id),
        last_seen=status.ts,
    )


async def find_mode(connection: Connection, kind: Kind, device_id: str) -> EnergyMode | None:
    """The energy mode of a device that was ever seen, linked or configured; None of any other."""
    found: EnergyMode | None = await connection.fetchval(kind.query("find_mode_of_device"), device_id)
    return found


async def set_energy_mode(connection: Connection, kind: Kind, device_id: str, energy_mode: EnergyMode) -> Device:
    """Say how the device's kWh are to be read, of the past too; the device need not have been seen yet."""
    await connection.execute(query("set_energy_mode"), kind.name, device_id, energy_mode)
    device = await get_device(connection, kind, device_id)
    return device or Device(kind.name, device_id, energy_mode, None, None, None)


async def list_status(
    connection: Connection, kind: Kind, *, after: str | None, limit: int
) -> Sequence[MeterStatus | VehicleStatus]:
    """Live state of the devices of a kind in the order of their ids, those behind `after`."""
    rows = await connection.fetch(kind.query("list_status"), after or "", limit)
    return [STATUS_TYPES[kind](**row) for row in rows]


async def get_status(connection: Connection, kind: Kind, device_id: str) -> MeterStatus | VehicleStatus | None:
    """Live state of one device, or None where it was never seen."""
    row = await connection.fetchrow(kind.query("get_status"), device_id)
    return STATUS_TYPES[kind](**row) if row else None


async def list_readings(
    connection: Connection,
    kind: Kind,
    device_id: str,
    start: datetime,
    end: datetime,
    *,
    after: datetime | None,
    limit: int,
) -> Sequence[MeterHistory | VehicleHistory]:
    """Readings in [start, end) in the order of time, those behind `after`."""
    if after is not None:
        start = max(start, after + timedelta(microseconds=1))  # times have whole microseconds
    rows = await connection.fetch(kind.query("list_readings"), device_id, start, end, limit)
    return [HISTORY_TYPES[kind](**row) for row in rows]


async def stream_readings(
    connection: Connection, kind: Kind, device_id: str, start: datetime, end: datetime
) -> AsyncGenerator[Sequence[MeterHistory | VehicleHistory], None]:
    """All readings in [start, end) in the order of time, a chunk at a time, in one snapshot.

    The connection is taken until the iterator ends or is closed.
    """
    async with transaction(connection, readonly=True):
        # Not `connection.cursor`, which gives the statement a name even where none may be left behind.
        statement = await connection.prepare(kind.query("list_readings"))
        cursor = await statement.cursor(device_id, start, end, None)
        while rows := await cursor.fetch(CHUNK_READINGS):
            yield [HISTORY_TYPES[kind](**row) for row in rows]


def suspect(values: Sequence[float], energy_mode: EnergyMode) -> EnergyMode | None:
    """The mode that values in the order of time look like, if that is clear and another one than `energy_mode`."""
    looks = _looks_like(values)
    return looks if looks != energy_mode else None


def _looks_like(values: Sequence[float]) -> EnergyMode | None:
    steps = [(before, after - before) for before, after in pairwise(values) if after != before]
    if len(steps) < MOVES_MIN:
        return None
    rises = [step for _, step in steps if step > 0]
    falls = [(before, before + step) for before, step in steps if step < 0]
    if min(len(falls), len(rises)) >= len(steps) / 4:
        return "interval" if max(values) <= 10 * max(rises) else None
    if not rises:
        return None
    if not falls and values[0] > 10 * max(rises):
        return "register"
    # A register that was reset falls once. What falls twice, each time from many steps to less than one, restarts.
    restarts = [after for before, after in falls if before >= 5 * max(rises) and after <= max(rises)]
    if len(falls) == len(restarts) >= 2:
        return "session"
    return None


async def _last_values(connection: Connection, kind: Kind, status: Status) -> list[float]:
    rows = await connection.fetch(
        kind.query("find_last_values"), status.id, status.ts - SUSPECT_FROM, status.ts, SUSPECT_READINGS
    )
    return [row["kwh"] for row in reversed(rows)]
