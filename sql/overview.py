"""A whole fleet at a glance: who was heard from, who is silent, and what every hour lost."""

from datetime import datetime

from msgspec import Struct

from sql.pool import Connection
from sql.queries import query
from sql.store import METER, VEHICLE, Kind

OTHER_ENDS = {METER: VEHICLE.device_column, VEHICLE: METER.device_column}


class Heard(Struct, frozen=True):
    """How many devices of a kind there are, and how many sent something lately."""

    known: int
    heard: int


class Silent(Struct, frozen=True):
    """A device with its newest reading."""

    id: str
    ts: datetime
    received_at: datetime
    values: dict[str, float]
    """By the history's column."""
    linked_with: str | None


class HourOfFleet(Struct, frozen=True):
    """What the linked vehicles of the fleet and their meters counted in a UTC hour, in kWh."""

    hour: datetime
    ac_kwh: float
    dc_kwh: float


async def count_heard(connection: Connection, since: datetime) -> dict[str, Heard]:
    """By kind of device."""
    rows = await connection.fetch(query("count_heard"), since)
    return {row["kind"]: Heard(row["known"], row["heard"]) for row in rows}


async def list_silent(connection: Connection, kind: Kind, prefix: str, limit: int) -> list[Silent]:
    """Of the devices whose id begins so, those that have been silent for the longest."""
    rows = await connection.fetch(kind.query("list_silent", other_id=OTHER_ENDS[kind]), prefix, limit)
    return [
        Silent(row["id"], row["ts"], row["received_at"], {name: row[name] for name in kind.values}, row["linked_with"])
        for row in rows
    ]


async def hours_of_fleet(connection: Connection, start: datetime, end: datetime) -> list[HourOfFleet]:
    """The rolled-up hours of [start, end) with readings of devices that were linked throughout: full hours of UTC."""
    ac_kwh, dc_kwh = [
        dict(await connection.fetch(kind.query("sum_linked_hours"), start, end)) for kind in (METER, VEHICLE)
    ]
    return [HourOfFleet(hour, ac_kwh.get(hour, 0.0), dc_kwh.get(hour, 0.0)) for hour in sorted(ac_kwh | dc_kwh)]
