"""Where the tests of the pages look: a broker, a database, a daemon and a sidecar, with a fleet's last day in them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from msgspec import Struct

from dev.broker import PrivateBroker
from dev.fleet import Fleet
from dev.house import House
from dev.publisher import Publisher
from sql.links import pair
from sql.rollups import KINDS, step
from tests.api.server import Sidecar, sidecar

VEHICLES = 12
LEAKY = "vehicle-0002"
UNLINKED = "vehicle-0012"
LONG = "W" * 64
"""The id of a vehicle and of its meter: as long and as wide as one can be, and nowhere to break it."""


class Place:
    """A daemon and a sidecar on one database."""

    def __init__(self, house: House, sidecar: Sidecar) -> None:
        self.house = house
        self.sidecar = sidecar
        self.url = sidecar.url
        self.database_url = house.database_url

    async def publish(self, topic: str, **reading: Any) -> None:
        """Send a reading over MQTT, and return once the broker has it."""
        await Publisher(self.house.broker.port, "web").publish([(topic, msgspec.json.encode(reading))])


class Guarded(Struct, frozen=True):
    """A sidecar that wants tokens."""

    url: str
    tokens: dict[str, str]
    """By role."""


@contextmanager
def open_place(folder: Path, database_url: str) -> Iterator[Place]:
    """All of it for the time of the block, without a fleet."""
    broker = PrivateBroker(folder / "mosquitto")
    house = House(folder, broker, database_url, RETENTION_DAYS="0")
    try:
        broker.start()
        house.start()
        with sidecar(folder, database_url, DAEMON_URLS=f"http://127.0.0.1:{house.metrics_port}") as found:
            yield Place(house, found)
    finally:
        house.daemon.stop()
        broker.process.stop()


async def settle_in(house: House, fleet: Fleet) -> None:
    """Have the fleet send its last day, link its vehicles, and roll the hours up."""
    now = datetime.now(UTC)
    day = list(fleet.backfill(now - timedelta(hours=24), now))
    long_named = list(_day_of_long_named(now))
    publisher = Publisher(house.broker.port, "fleet")
    await publisher.publish([*((message.topic, message.payload) for message in day), *long_named])
    await house.settled(sum(message.readings for message in day) + len(long_named))
    connection = await asyncpg.connect(house.database_url)
    for vehicle_id, meter_id in [*fleet.pairs(), (LONG, LONG)]:
        await pair(connection, vehicle_id, meter_id, now - timedelta(hours=25), None)
    for kind in KINDS:
        while await step(connection, kind, now):
            pass
    await connection.close()


def _day_of_long_named(now: datetime) -> Iterator[tuple[str, bytes]]:
    """What the vehicle and the meter with the long name send, and something that cannot be read."""
    for n in range(1, 24 * 12):
        shared = {"timestamp": (now - n * timedelta(minutes=5)).isoformat()}
        meter = {"meterId": LONG, "kwhConsumedAc": 0.5, "voltage": 230, **shared}
        vehicle = {"vehicleId": LONG, "soc": 50, "kwhDeliveredDc": 0.4, "batteryTemp": 20, **shared}
        yield f"meters/{LONG}/reading", msgspec.json.encode(meter)
        yield f"vehicles/{LONG}/reading", msgspec.json.encode(vehicle)
    yield f"vehicles/{LONG}/reading", b"{"
