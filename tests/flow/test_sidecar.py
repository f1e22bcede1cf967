"""The sidecar beside the daemon: two ways in, one table; and many hands on the same links."""

import asyncio
import os
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx2
import msgspec
import pytest

from dev.house import ROOT, House
from dev.processes import Child, free_port, port_answers
from dev.publisher import Publisher

READINGS = 3000
CLIENTS = 32
ATTACK_SECONDS = float(os.environ.get("ATTACK_SECONDS", "3"))


@pytest.fixture
def api_url(house: House) -> Iterator[str]:
    """A sidecar on the house's database."""
    port = free_port()
    environment = {**os.environ, "DATABASE_URL": house.database_url, "API_PORT": str(port), "RETENTION_DAYS": "0"}
    folder = house.daemon.log.parent
    sidecar = Child("api", [sys.executable, "-m", "api"], folder, env=lambda: environment, cwd=ROOT)
    sidecar.start(lambda: port_answers(port))
    yield f"http://127.0.0.1:{port}"
    sidecar.stop()


async def test_every_reading_sent_by_post_and_by_mqtt_at_once_is_there_once(
    house: House, api_url: str, database: asyncpg.Connection
) -> None:
    start_s = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
    readings = [
        {"meterId": f"m{n % 50}", "kwhConsumedAc": n / 1000, "voltage": 230, "timestamp": start_s + n // 50 * 60}
        for n in range(READINGS)
    ]
    messages = [(f"meters/{reading['meterId']}/reading", msgspec.json.encode(reading)) for reading in readings]

    async def post() -> dict[str, int]:
        counts = dict.fromkeys(("received", "stored", "duplicate", "rejected"), 0)
        async with httpx2.AsyncClient(base_url=api_url, timeout=30) as client:
            for first in range(0, READINGS, 100):
                answer = await client.post("/v1/ingest", json=readings[first : first + 100])
                assert answer.status_code == 201, answer.text
                counts = {name: count + answer.json()[name] for name, count in counts.items()}
        return counts

    publisher = Publisher(house.broker.port, "meters")
    posted, again, _ = await asyncio.gather(post(), post(), publisher.publish([*messages, *messages]))
    books = await house.settled(2 * READINGS)
    assert await database.fetchval("SELECT count(*) FROM meter_reading") == READINGS
    assert (
        await database.fetchval("SELECT sum(kwh_consumed_ac::numeric) FROM meter_reading")
        == sum(n for n in range(READINGS)) / 1000
    )
    assert books.stored["meter"] + posted["stored"] + again["stored"] == READINGS
    assert books.duplicate + posted["duplicate"] + again["duplicate"] == 3 * READINGS
    assert (books.rejected, posted["rejected"], again["rejected"], books.unaccounted) == ({}, 0, 0, 0)


async def test_many_clients_on_the_same_links_leave_no_overlap(
    house: House, api_url: str, database: asyncpg.Connection
) -> None:
    ends_at = asyncio.get_running_loop().time() + ATTACK_SECONDS
    answered: dict[int, int] = {}

    async def quarrel(seed: int) -> None:
        draw = random.Random(seed)
        async with httpx2.AsyncClient(base_url=api_url, timeout=30) as client:
            while asyncio.get_running_loop().time() < ends_at:
                vehicle_id, meter_id = f"v{draw.randrange(10)}", f"m{draw.randrange(10)}"
                since = datetime.now(UTC) - timedelta(seconds=draw.randrange(3600))
                match draw.randrange(4):
                    case 0:
                        answer = await client.delete(f"/v1/links/{vehicle_id}")
                    case 1:
                        until = since + timedelta(seconds=draw.randrange(1, 600))
                        times = {"validFrom": since.isoformat(), "validTo": min(until, datetime.now(UTC)).isoformat()}
                        answer = await client.post(
                            "/v1/links", json={"vehicleId": vehicle_id, "meterId": meter_id, **times}
                        )
                    case _:
                        answer = await client.post("/v1/links", json={"vehicleId": vehicle_id, "meterId": meter_id})
                answered[answer.status_code] = answered.get(answer.status_code, 0) + 1

    await asyncio.gather(*map(quarrel, range(CLIENTS)))
    overlaps = """
        SELECT count(*) FROM vehicle_meter_link AS a JOIN vehicle_meter_link AS b
            ON (a.vehicle_id = b.vehicle_id OR a.meter_id = b.meter_id)
            AND (a.vehicle_id, a.valid_from) < (b.vehicle_id, b.valid_from)
            AND tstzrange(a.valid_from, a.valid_to) && tstzrange(b.valid_from, b.valid_to)
    """
    assert await database.fetchval(overlaps) == 0
    assert await database.fetchval("SELECT count(*) FROM vehicle_meter_link") > 10
    assert set(answered) <= {200, 201, 404, 409, 410}, answered
    print(f"{sum(answered.values())} requests in {ATTACK_SECONDS:g} s: {answered}")
