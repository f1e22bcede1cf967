"""What both rivals need: the way a competent engineer writes an MQTT consumer for PostgreSQL with the usual libraries.

aiomqtt on paho, msgspec for JSON, asyncpg with prepared statements, uvloop. aiomqtt acknowledges a message when it has
come in, before anybody has stored it, and keeps what was not asked for yet in memory without a bound: what it holds
when it is killed is lost. That cannot be turned off, so the rivals promise less than the daemon and do less for it.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeAlias

import aiomqtt
import msgspec
from msgspec import Struct
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from dev.bench.client import ClientOptions

RECEIVE_MAXIMUM = 1000
"""Without it Mosquitto sends 20 messages and waits."""


class Meter(Struct, rename="camel"):
    """A meter's payload."""

    kwh_consumed_ac: float
    voltage: float
    timestamp: int


class Vehicle(Struct, rename="camel"):
    """A vehicle's payload."""

    soc: float
    kwh_delivered_dc: float
    battery_temp: float
    timestamp: int


Row: TypeAlias = tuple[Any, ...]

INSERT = {
    "meters": "INSERT INTO meter_reading (meter_id, ts, kwh_consumed_ac, voltage, received_at) "
    "VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
    "vehicles": "INSERT INTO vehicle_reading (vehicle_id, ts, soc, kwh_delivered_dc, battery_temp, received_at) "
    "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
}
UPSERT = {
    "meters": "INSERT INTO meter_status AS s (meter_id, ts, kwh_consumed_ac, voltage, received_at) "
    "VALUES ($1, $2, $3, $4, $5) ON CONFLICT (meter_id) DO UPDATE SET ts = excluded.ts, "
    "kwh_consumed_ac = excluded.kwh_consumed_ac, voltage = excluded.voltage, received_at = excluded.received_at "
    "WHERE s.ts < excluded.ts",
    "vehicles": "INSERT INTO vehicle_status AS s (vehicle_id, ts, soc, kwh_delivered_dc, battery_temp, received_at) "
    "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (vehicle_id) DO UPDATE SET ts = excluded.ts, soc = excluded.soc, "
    "kwh_delivered_dc = excluded.kwh_delivered_dc, battery_temp = excluded.battery_temp, "
    "received_at = excluded.received_at WHERE s.ts < excluded.ts",
}
_meter = msgspec.json.Decoder(Meter)
_vehicle = msgspec.json.Decoder(Vehicle)


def decode(message: aiomqtt.Message) -> tuple[str, Row]:
    """The kind, as the topic says it, and the row for its tables."""
    kind, device, _ = str(message.topic).split("/")
    payload, now = message.payload, datetime.now(UTC)
    if kind == "meters":
        meter = _meter.decode(payload)
        return kind, (device, _time(meter.timestamp), meter.kwh_consumed_ac, meter.voltage, now)
    vehicle = _vehicle.decode(payload)
    values = (vehicle.soc, vehicle.kwh_delivered_dc, vehicle.battery_temp)
    return kind, (device, _time(vehicle.timestamp), *values, now)


@asynccontextmanager
async def subscribed(options: ClientOptions) -> AsyncIterator[aiomqtt.Client]:
    """A client with a session that outlives it, subscribed to all readings."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho has no types here
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    properties.SessionExpiryInterval = 3600
    quiet = logging.getLogger("fleetwatt.rival")
    quiet.setLevel(logging.ERROR)
    async with aiomqtt.Client(
        *("127.0.0.1", options.port),
        identifier="rival",
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=False,
        properties=properties,
        logger=quiet,
    ) as client:
        for topic in ("meters/+/reading", "vehicles/+/reading"):
            await client.subscribe(topic, qos=1)
        yield client


def _time(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1000, UTC)
