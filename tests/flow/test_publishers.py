"""Readings reach the table whoever publishes them, and a reading that cannot be stored says why."""

import asyncio
import subprocess
import sys
from pathlib import Path

import asyncpg
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from daemon.readings import PAYLOAD_BYTES_MAX, REASONS
from dev.books import Books
from dev.broker import PrivateBroker
from dev.house import ROOT, House
from dev.publisher import Publisher

RECORDING = Path(__file__).parent.parent / "data" / "vehicle_gueni_2023-05-16.ndjson"
GOOD = b'{"kwhConsumedAc":0.25,"voltage":230,"timestamp":"2026-01-02T03:04:05Z"}'


def mosquitto_pub(house: House, *words: str, text: str | None = None) -> None:
    command = ["mosquitto_pub", "-p", str(house.broker.port), "-q", "1", *words]
    subprocess.run(command, input=text, text=True, check=True, timeout=30)


async def test_a_recording_is_stored_to_the_last_digit_and_a_second_replay_changes_nothing(
    house: House, database: asyncpg.Connection
) -> None:
    async def replay() -> None:
        command = [sys.executable, "-m", "dev", "replay", str(RECORDING)]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env={"MQTT_URL": house.broker.url}, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
        assert "144 acknowledged by the broker" in printed.decode()

    await replay()
    await house.settled(144)
    sums = """
        SELECT count(*), sum(kwh_delivered_dc::numeric), round(avg(battery_temp::numeric), 6),
               (array_agg(soc ORDER BY ts))[1], (array_agg(soc ORDER BY ts DESC))[1]
        FROM vehicle_reading
    """
    expected = "(144, Decimal('5.348207'), Decimal('27.282292'), 86.69, 93.1)"
    assert str(tuple(await database.fetchrow(sums))) == expected
    await replay()
    books = await house.settled(288)
    assert str(tuple(await database.fetchrow(sums))) == expected
    assert (books.stored, books.duplicate, books.rejected) == ({"vehicle": 144}, 144, {})


async def test_lines_from_mosquitto_pub_are_stored(house: House, database: asyncpg.Connection) -> None:
    lines = "".join(f'{{"kwhConsumedAc":0.5,"voltage":230,"timestamp":{1_700_000_000 + n}}}\n' for n in range(500))
    mosquitto_pub(house, "-t", "meters/m-1/reading", "-l", text=lines)
    await house.settled(500)
    assert await database.fetchval("SELECT sum(kwh_consumed_ac) FROM meter_reading WHERE meter_id = 'm-1'") == 250


@pytest.mark.parametrize("version", [MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_device_on_paho_is_served_with_any_quality_of_service(
    house: House, database: asyncpg.Connection, version: MQTTProtocolVersion, qos: int
) -> None:
    device = paho.Client(CallbackAPIVersion.VERSION2, client_id="v1", protocol=version)
    device.connect("127.0.0.1", house.broker.port)
    device.loop_start()
    payload = '{"vehicleId":"v1","soc":50.5,"kwhDeliveredDc":0.1,"batteryTemp":21,"type":"VEHICLE"}'
    for _ in range(3):  # without a time of their own they are three readings
        await asyncio.to_thread(device.publish("vehicles/v1/reading", payload, qos=qos).wait_for_publish, 10)
    await house.settled(3)
    device.disconnect()
    device.loop_stop()
    assert await database.fetchval("SELECT count(*) FROM vehicle_reading WHERE soc = 50.5") == 3
    assert await database.fetchval("SELECT soc FROM vehicle_status WHERE vehicle_id = 'v1'") == 50.5


def retain(broker: PrivateBroker, device: str, payload: bytes) -> None:
    command = ["mosquitto_pub", "-p", str(broker.port), "-q", "1", "-r", "-t", f"meters/{device}/reading", "-s"]
    subprocess.run(command, input=payload, check=True, timeout=30)


async def test_a_retained_reading_counts_only_with_its_own_time(
    tmp_path: Path, broker: PrivateBroker, database_url: str, database: asyncpg.Connection
) -> None:
    retain(broker, "timed", b'{"kwhConsumedAc":1,"voltage":230,"timestamp":1700000000}')
    retain(broker, "timeless", b'{"kwhConsumedAc":1,"voltage":230}')
    house = House(tmp_path, broker, database_url, RETENTION_DAYS="0")
    house.start()
    books = await house.settled(2)
    house.daemon.stop()
    assert (books.stored, books.rejected) == ({"meter": 1}, {"bad_timestamp": 1})
    assert await database.fetchval("SELECT meter_id FROM meter_reading") == "timed"


BAD = {
    "malformed_json": ("meters/m1/reading", b'{"kwhConsumedAc":1,'),
    "wrong_type": ("meters/m1/reading", b'{"kwhConsumedAc":true,"voltage":230}'),
    "missing_field": ("vehicles/v1/reading", b'{"soc":50,"batteryTemp":20}'),
    "out_of_range": ("vehicles/v1/reading", b'{"soc":101,"kwhDeliveredDc":1,"batteryTemp":20}'),
    "bad_timestamp": ("meters/m1/reading", b'{"kwhConsumedAc":1,"voltage":230,"timestamp":"2026-01-02T03:04:05"}'),
    "clock_ahead": ("meters/m1/reading", b'{"kwhConsumedAc":1,"voltage":230,"timestamp":"2099-01-01T00:00:00Z"}'),
    "too_old": ("meters/m1/reading", b'{"kwhConsumedAc":1,"voltage":230,"timestamp":0}'),
    "bad_id": ("meters/m 1/reading", GOOD),
    "id_mismatch": ("meters/m1/reading", b'{"meterId":"m2","kwhConsumedAc":1,"voltage":230}'),
    "bad_topic": ("meters/m1/status", b"online\0\xff"),
    "too_large": ("meters/m1/reading", b'{"kwhConsumedAc":1,"x":"%s"}' % (b"x" * PAYLOAD_BYTES_MAX)),
    "conflict": ("meters/good/reading", GOOD.replace(b"0.25", b"0.75")),
    "refused_by_database": ("meters/refused/reading", GOOD),
}


async def test_every_reason_for_a_rejection_is_reached_and_the_neighbours_are_stored(
    house: House, database: asyncpg.Connection
) -> None:
    assert set(BAD) == set(REASONS)
    await database.execute("ALTER TABLE meter_reading ADD CHECK (meter_id <> 'refused')")
    messages = [("meters/good/reading", GOOD)]
    for n, message in enumerate(BAD.values()):
        messages += [message, (f"meters/neighbour-{n}/reading", GOOD)]
    await Publisher(house.broker.port, "devices").publish(messages)
    books = await house.settled(len(messages))
    rows = await database.fetch("SELECT reason, topic, payload, detail FROM rejection")
    assert {row["reason"]: (row["topic"], row["payload"]) for row in rows} == BAD
    assert all(row["detail"] for row in rows)
    assert books.rejected == dict.fromkeys(REASONS, 1)
    stored = await database.fetch("SELECT meter_id, kwh_consumed_ac FROM meter_reading ORDER BY 1")
    assert sorted(map(tuple, stored)) == sorted(
        (device, 0.25) for device in ["good", *(f"neighbour-{n}" for n in range(len(BAD)))]
    )


async def test_of_an_array_only_the_bad_elements_are_rejected_each_with_its_bytes(
    house: House, database: asyncpg.Connection
) -> None:
    elements = [
        b'{"kwhConsumedAc":0.1,"voltage":230,"timestamp":1700000000}',
        b'{"kwhConsumedAc":-1, "voltage":230}',
        b'{"kwhConsumedAc":"0.2","voltage":"231","timestamp":"1700000060"}',
        b"17",
    ]
    await Publisher(house.broker.port, "device").publish([("meters/m1/reading", b"[%s]" % b" , ".join(elements))])
    books = await house.settled(4)
    assert books.stored == {"meter": 2}
    found = await database.fetch("SELECT reason, payload FROM rejection ORDER BY id")
    assert [tuple(row) for row in found] == [("out_of_range", elements[1]), ("wrong_type", elements[3])]
    assert await database.fetchval("SELECT sum(kwh_consumed_ac::numeric)::text FROM meter_reading") == "0.3"


async def test_a_hundred_thousand_bad_messages_do_not_keep_out_a_good_one(
    house: House, database: asyncpg.Connection
) -> None:
    messages = [(f"vehicles/v{n}/reading", b"{") for n in range(100_000)]
    await Publisher(house.broker.port, "flood").publish([*messages, ("meters/good/reading", GOOD)])
    books = await house.settled(100_001)
    assert books.rejected == {"malformed_json": 100_000}
    assert await database.fetchval("SELECT kwh_consumed_ac FROM meter_status WHERE meter_id = 'good'") == 0.25
    assert books.unaccounted == 0


async def test_a_silent_hour_is_followed_by_what_the_device_kept(house: House, database: asyncpg.Connection) -> None:
    kept = [
        b'{"soc":50,"kwhDeliveredDc":0.1,"batteryTemp":20,"timestamp":%d}' % (1_700_000_000 + 60 * n) for n in range(60)
    ]
    now = b'{"soc":51,"kwhDeliveredDc":0.1,"batteryTemp":20}'
    publisher = Publisher(house.broker.port, "device")
    await publisher.publish([("vehicles/v1/reading", now)])
    await house.settled(1)
    await publisher.publish([("vehicles/v1/reading", b"[%s]" % b",".join(kept))])
    books: Books = await house.settled(61)
    assert books.stored == {"vehicle": 61}
    assert await database.fetchval("SELECT soc FROM vehicle_status") == 51, "late readings do not roll back live state"
