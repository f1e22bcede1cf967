"""MQTT and HTTP lead to the same table: what comes by both is there once, and means the same."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
from hypothesis import given, settings
from hypothesis import strategies as st

from api.app import build_app
from daemon.readings import Receipt, ReceiptClock, Rules, decode, decode_item
from dev.broker import PrivateBroker
from dev.house import House
from dev.publisher import Publisher
from tests.api.conftest import NOW, meter, running, vehicle
from tests.api.conftest import settings as api_settings
from tests.test_readings import broken_objects, objects

RULES = Rules(clock_ahead_max=timedelta(seconds=300), retention=None)


def message(reading: dict[str, Any]) -> tuple[str, bytes]:
    """A reading as its device would publish it."""
    kind = "meters" if "meterId" in reading else "vehicles"
    return f"{kind}/{reading.get('meterId') or reading['vehicleId']}/reading", json.dumps(reading).encode()


async def test_readings_sent_by_both_at_once_are_there_once(
    broker: PrivateBroker, database: asyncpg.Connection, database_url: str, tmp_path: Path
) -> None:
    readings = [
        {**make(NOW - timedelta(seconds=n)), key: f"d-{n % 7}"}
        for n in range(1500)
        for make, key in ((meter, "meterId"), (vehicle, "vehicleId"))
    ]
    house = House(tmp_path, broker, database_url)
    house.start()
    try:
        async with running(build_app(api_settings(database_url))) as client:

            async def by_http(part: int) -> int:
                report = (await client.post("/v1/ingest", json=readings[part::3] + readings[part::6])).json()
                assert report["rejected"] == 0
                return int(report["stored"])

            publisher = Publisher(broker.port, "device")
            published = asyncio.create_task(publisher.publish(map(message, readings)))
            stored = sum(await asyncio.gather(*(by_http(part % 3) for part in range(6))))
            await published
            books = await house.settled(len(readings))
    finally:
        house.daemon.stop()
    found = await database.fetchval(
        "SELECT (SELECT count(*) FROM meter_reading) + (SELECT count(*) FROM vehicle_reading)"
    )
    assert found == len(readings) == stored + sum(books.stored.values())
    assert await database.fetchval("SELECT count(*) FROM rejection") == 0


values = st.one_of(objects, broken_objects)


@settings(max_examples=300, deadline=None)
@given(fields=values, kind=st.sampled_from(["meter", "vehicle"]))
def test_an_item_means_what_it_means_on_its_topic(fields: dict[str, Any], kind: str) -> None:
    """With its kind and its id in it, an item is judged as the message on that topic would be."""
    own, other = ("meterId", "vehicleId") if kind == "meter" else ("vehicleId", "meterId")
    item = json.dumps(
        {**{key: value for key, value in fields.items() if key != other}, own: "d-1", "type": kind}
    ).encode()
    by_item = decode_item(item, Receipt(RULES, ReceiptClock(lambda: NOW)))
    by_topic = decode(f"{kind}s/d-1/reading", item, Receipt(RULES, ReceiptClock(lambda: NOW)))
    assert list(by_item.rows) == list(by_topic.rows)
    assert [rejection.reason for rejection in by_item.rejections] == [
        rejection.reason for rejection in by_topic.rejections
    ]


@settings(max_examples=300, deadline=None)
@given(item=st.one_of(st.binary(max_size=60), values.map(lambda value: json.dumps(value).encode())))
def test_whatever_comes_is_one_row_or_one_rejection(item: bytes) -> None:
    decoded = decode_item(item, Receipt(RULES, ReceiptClock(lambda: NOW)))
    assert len(decoded.rows) + len(decoded.rejections) == 1
