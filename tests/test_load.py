"""The checker finds what is wrong: each kind of fault is put into the database by hand, and found."""

from datetime import timedelta

import asyncpg
import pytest

from daemon.readings import Receipt, ReceiptClock, Rules, decode
from dev.broker import PrivateBroker
from dev.load import Load, check

RULES = Rules(clock_ahead_max=timedelta(minutes=5), retention=timedelta(days=400))


@pytest.fixture
async def load(broker: PrivateBroker, database: asyncpg.Connection) -> Load:
    """A load that the broker took and that is in the database as it should be."""
    load = Load(broker.port)
    async with load:
        await load.at_once(1000)
    days = {load.messages.reading(number).ts.date() for number in range(load.begun)}
    for day in days:
        for kind in ("meter", "vehicle"):
            await database.execute("SELECT ensure_day($1, $2)", f"{kind}_reading", day)
    for number in range(load.begun):
        topic, payload = load.messages.message(number)
        if load.messages.is_reading(number):
            reading = load.messages.reading(number)
            places = ", ".join(f"${n}" for n in range(1, len(reading.values) + 3))
            row = (reading.device, reading.ts, *reading.values)
            await database.execute(f"INSERT INTO {reading.kind}_reading VALUES ({places}, now())", *row)
            await database.execute(
                f"INSERT INTO {reading.kind}_status VALUES ({places}, now()) "
                f"ON CONFLICT ({reading.kind}_id) DO UPDATE SET ts = excluded.ts",
                *row,
            )
        elif number % 100 == 99:
            await database.execute(
                "INSERT INTO rejection (received_at, topic, reason, detail, payload) VALUES (now(), $1, $2, '', $3)",
                *(topic, load.messages.reason(number), payload),
            )
    return load


async def test_a_load_that_is_there_is_found_whole(load: Load, database_url: str) -> None:
    findings = await check(load, database_url)
    assert findings.complaints() == []
    assert findings.acknowledged >= 1000
    assert findings.stored == load.messages.readings_before(findings.acknowledged)
    assert findings.rejections == findings.acknowledged // 100


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        ("DELETE FROM meter_reading WHERE meter_id = 'd7'", "1 readings lost"),
        ("UPDATE vehicle_reading SET vehicle_id = 'd5' WHERE vehicle_id = 'd4'", "1 rows that nobody published"),
        ("UPDATE meter_reading SET voltage = 1 WHERE meter_id = 'd7'", "1 rows that nobody published"),
        ("DELETE FROM rejection WHERE id = 1", "1 bad messages not kept"),
        ("UPDATE rejection SET reason = 'bad_id' WHERE id = 1", "1 bad messages not kept"),
        (
            "INSERT INTO meter_reading SELECT meter_id, ts + interval '1 second', kwh_consumed_ac, voltage, now() "
            "FROM meter_reading WHERE meter_id = 'd7'",
            "1 readings stored twice",
        ),
        (
            "UPDATE meter_status SET ts = ts - interval '1h' WHERE meter_id = 'd7'",
            "1 live rows",
        ),
        ("DELETE FROM vehicle_status WHERE vehicle_id = 'd4'", "1 live rows"),
    ],
)
async def test_what_is_wrong_is_found(
    load: Load, database: asyncpg.Connection, database_url: str, harm: str, complaint: str
) -> None:
    await database.execute(harm)
    complaints = (await check(load, database_url, patience_s=0)).complaints()
    assert any(each.startswith(complaint) for each in complaints), complaints


async def test_every_bad_message_has_the_reason_that_is_looked_for(broker: PrivateBroker) -> None:
    messages = Load(broker.port).messages
    for number in range(99, 1000, 100):
        decoded = decode(*messages.message(number), Receipt(RULES, ReceiptClock()))
        assert [rejection.reason for rejection in decoded.rejections] == [messages.reason(number)]
