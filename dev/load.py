"""A load that remembers what the broker acknowledged, and the one checker that looks for all of it in the database.

Every message is known by its number. Of each hundred, 98 are readings, one repeats a reading to the letter, and one is
bad in a way that has a reason. Reading `n` is of device `n % DEVICES`, its values follow from `n`, and so does its
time, so that a look at a row says which reading it is and whether it is whole.

A message that the broker did not acknowledge is published again, as a device does; so repeats may be more than those.
Bad messages may be kept more than once: MQTT delivers again what was not acknowledged. None may be missing.
"""

import asyncio
import contextlib
import re
import time
from datetime import UTC, datetime, timedelta

import asyncpg
from msgspec import Struct

from dev.house import PATIENCE_S, eventually
from dev.publisher import Publisher, PublisherError

DEVICES = 997
"""A prime number, so that each device comes with each kind of message in turn."""
PER_S = 1000
CHUNK_INTERVAL_S = 0.1
RETRY_S = 0.2
"""How long to wait for a broker that is away."""

_REPEAT, _BAD = 98, 99
_REPEATED = 50
"""A repeat is of the reading this many messages before."""
_BAD_FORMS = (
    ("malformed_json", "meters/{device}/reading", '{{"n":{n},"kwhConsumedAc":'),
    ("missing_field", "meters/{device}/reading", '{{"n":{n},"kwhConsumedAc":1}}'),
    ("out_of_range", "vehicles/{device}/reading", '{{"n":{n},"soc":101,"kwhDeliveredDc":1,"batteryTemp":20}}'),
    ("too_old", "meters/{device}/reading", '{{"n":{n},"kwhConsumedAc":1,"voltage":230,"timestamp":60}}'),
    ("bad_topic", "meters/{device}/status", '{{"n":{n}}}'),
)
_NUMBER = re.compile(rb'"n":(\d+)')


class Reading(Struct, frozen=True):
    """What the database must have of a message."""

    kind: str
    device: str
    ts: datetime
    values: tuple[float, ...]


class Messages:
    """The messages by their number."""

    def __init__(self, start: datetime) -> None:
        """`start` is the time of the first reading."""
        self._start = start

    def is_reading(self, number: int) -> bool:
        """Whether this message is a reading and no repetition."""
        return number % 100 < _REPEAT

    def readings_before(self, number: int) -> int:
        """How many of the messages with a lower number are readings."""
        return number // 100 * _REPEAT + min(number % 100, _REPEAT)

    def reading(self, number: int) -> Reading:
        """The reading with this number."""
        device, ts = f"d{number % DEVICES}", self._start + timedelta(seconds=number // DEVICES)
        if number % 2:
            return Reading("meter", device, ts, (number / 1000, 220.0 + number % 20))
        return Reading("vehicle", device, ts, (float(number % 101), number / 1000, float(number % 40)))

    def reason(self, number: int) -> str:
        """Why the bad message with this number is rejected."""
        return _BAD_FORMS[number // 100 % len(_BAD_FORMS)][0]

    def message(self, number: int) -> tuple[str, bytes]:
        """The topic and the payload."""
        if number % 100 == _REPEAT:
            number -= _REPEATED
        if number % 100 == _BAD:
            _, topic, payload = _BAD_FORMS[number // 100 % len(_BAD_FORMS)]
            return topic.format(device=f"d{number % DEVICES}"), payload.format(n=number).encode()
        reading = self.reading(number)
        unix_s = int(reading.ts.timestamp())
        if reading.kind == "meter":
            body = b'{"kwhConsumedAc":%.3f,"voltage":%.0f,"timestamp":%d}' % (*reading.values, unix_s)
            return f"meters/{reading.device}/reading", body
        body = b'{"soc":%.0f,"kwhDeliveredDc":%.3f,"batteryTemp":%.0f,"timestamp":%d}' % (*reading.values, unix_s)
        return f"vehicles/{reading.device}/reading", body


class Load:
    """Publishes until told to stop, `PER_S` messages a second or more, straight to the broker."""

    def __init__(self, port: int) -> None:
        self._publisher = Publisher(port, "load")
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._wanted = 0
        self.messages = Messages(datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(days=2))
        self.begun = 0
        """No message with this number or a higher one was sent yet."""

    async def __aenter__(self) -> "Load":
        self._task = asyncio.create_task(self._run(), name="load")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        if self._task is not None:
            await self._task

    @property
    def acknowledged(self) -> int:
        """The broker took all messages with a lower number."""
        return self._publisher.acknowledged

    async def more(self, messages: int, patience_s: float = PATIENCE_S) -> None:
        """Wait until the broker took that many more."""
        await self._until(self.acknowledged + messages, patience_s)

    async def at_once(self, messages: int, patience_s: float = 300) -> None:
        """Publish that many as fast as the broker takes them."""
        self._wanted = self.begun + messages
        await self._until(self._wanted, patience_s)

    async def _until(self, wanted: int, patience_s: float) -> None:
        async def published_more() -> bool:
            return self.acknowledged >= wanted

        await eventually(published_more, patience_s)

    async def _run(self) -> None:
        due_s = time.monotonic()
        while not self._stop.is_set():
            first = self.acknowledged
            self.begun = max(self.begun, first + int(PER_S * CHUNK_INTERVAL_S), self._wanted)
            try:
                await self._publisher.publish(map(self.messages.message, range(first, self.begun)))
            except (PublisherError, OSError):
                await asyncio.sleep(RETRY_S)
            due_s = max(due_s + CHUNK_INTERVAL_S, time.monotonic())  # what an absence cost is not made good
            await asyncio.sleep(due_s - time.monotonic())


class Findings(Struct):
    """What became of a load."""

    acknowledged: int
    """Messages: readings, repeats and bad ones."""
    stored: int = 0
    """Readings in the table."""
    rejections: int = 0
    """Rows of the table `rejection`."""
    lost: int = 0
    """Readings that were acknowledged and are not there."""
    twice: int = 0
    """Rows of a reading that has one already, be it under another key."""
    strange: int = 0
    """Rows that were never published so."""
    rejections_lost: int = 0
    """Bad messages that were acknowledged and are not kept with their reason."""
    stale: int = 0
    """Live rows that are not their device's newest reading, or are missing."""

    def complaints(self) -> list[str]:
        """What must not be, in words; nothing if all is well."""
        found = {
            "readings lost": self.lost,
            "readings stored twice": self.twice,
            "rows that nobody published": self.strange,
            "bad messages not kept": self.rejections_lost,
            "live rows that are not the newest reading": self.stale,
        }
        return [f"{count:,} {what}" for what, count in found.items() if count]


async def check(load: Load, database_url: str, patience_s: float = PATIENCE_S) -> Findings:
    """Wait until all that was acknowledged is there, for as long as patience lasts, and look at every row."""
    connection = await asyncpg.connect(database_url)
    try:
        with contextlib.suppress(TimeoutError):  # what is missing then is found below
            await eventually(lambda: _all_there(load, connection), patience_s)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            findings = Findings(load.acknowledged)
            await _check_readings(load, connection, findings)
            await _check_rejections(load, connection, findings)
            await _check_live(connection, findings)
        return findings
    finally:
        await connection.close()


async def count_missing(load: Load, acknowledged: int, database_url: str) -> int:
    """How many of the readings among the first `acknowledged` messages are not stored; only counts."""
    connection = await asyncpg.connect(database_url)
    try:
        return await _count_missing(load, acknowledged, connection)
    finally:
        await connection.close()


async def _count_missing(load: Load, acknowledged: int, connection: asyncpg.Connection) -> int:
    stored = await connection.fetchval(
        "SELECT (SELECT count(*) FROM meter_reading WHERE kwh_consumed_ac < $1::float8 / 1000) + "
        "(SELECT count(*) FROM vehicle_reading WHERE kwh_delivered_dc < $1::float8 / 1000)",
        acknowledged,
    )
    return load.messages.readings_before(acknowledged) - int(stored)


async def _all_there(load: Load, connection: asyncpg.Connection) -> bool:
    if await _count_missing(load, load.acknowledged, connection):
        return False
    numbers = {number for number, _ in await _rejections(connection)}
    return all(number in numbers for number in range(_BAD, load.acknowledged, 100))


async def _check_readings(load: Load, connection: asyncpg.Connection, findings: Findings) -> None:
    seen = bytearray(load.begun)
    for kind, columns in (("meter", "kwh_consumed_ac, voltage"), ("vehicle", "soc, kwh_delivered_dc, battery_temp")):
        statement = f"SELECT {kind}_id, ts, {columns} FROM {kind}_reading"  # noqa: S608 - names of ours
        async for device, ts, *values in connection.cursor(statement, prefetch=20_000):
            number = round(values[kind == "vehicle"] * 1000)
            findings.stored += 1
            if not (number < load.begun and load.messages.is_reading(number)):
                findings.strange += 1
                continue
            findings.twice += seen[number]
            seen[number] = True
            findings.strange += load.messages.reading(number) != Reading(kind, device, ts, tuple(values))
    readings = load.messages.readings_before(load.acknowledged)
    findings.lost = readings - sum(seen[: load.acknowledged])


async def _check_rejections(load: Load, connection: asyncpg.Connection, findings: Findings) -> None:
    rows = await _rejections(connection)
    findings.rejections = len(rows)
    kept = set(rows)
    bad = range(_BAD, load.acknowledged, 100)
    findings.rejections_lost = sum((number, load.messages.reason(number)) not in kept for number in bad)
    findings.strange += sum(number % 100 != _BAD for number, _ in kept)


async def _rejections(connection: asyncpg.Connection) -> list[tuple[int, str]]:
    """The number in the payload of each, and its reason."""
    rows = await connection.fetch("SELECT payload, reason FROM rejection")
    return [(int(found[1]) if (found := _NUMBER.search(payload)) else 0, reason) for payload, reason in rows]


async def _check_live(connection: asyncpg.Connection, findings: Findings) -> None:
    for kind in ("meter", "vehicle"):
        findings.stale += await connection.fetchval(
            f"SELECT count(*) FROM (SELECT {kind}_id, max(ts) AS ts FROM {kind}_reading GROUP BY 1) AS newest "  # noqa: S608 - names of ours
            f"FULL JOIN {kind}_status AS live USING ({kind}_id) WHERE live.ts IS DISTINCT FROM newest.ts"
        )
