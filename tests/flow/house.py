"""The daemon as a process of its own between a real broker and a real database, and a load with a checker behind it."""

import asyncio
import os
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from dev.books import Books, parse_books
from dev.broker import PrivateBroker
from dev.processes import Child, free_port
from dev.publisher import Publisher, PublisherError

ROOT = Path(__file__).parents[2]
PATIENCE_S = 45.0


class House:
    """A daemon with the broker and the database that it is given."""

    def __init__(self, folder: Path, broker: PrivateBroker, database_url: str, **settings: str) -> None:
        self.broker = broker
        self.database_url = database_url
        self.metrics_port = free_port()
        environment = {**os.environ, **settings, "MQTT_URL": broker.url, "DATABASE_URL": database_url}
        environment["METRICS_PORT"] = str(self.metrics_port)
        self.daemon = Child("daemon", [sys.executable, "-m", "daemon"], folder, env=lambda: environment, cwd=ROOT)

    def start(self) -> None:
        """Start the daemon and wait until it is ready."""
        self.daemon.start(self.is_ready)

    def is_ready(self) -> bool:
        """Whether /readyz says so."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def books(self) -> Books:
        """The daemon's own counts."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            return parse_books(answer.read().decode())

    async def settled(self, readings: int) -> Books:
        """Wait until that many readings were received since the daemon's start and none is in flight."""

        async def enough() -> bool:
            books = self.books()
            return books.received >= readings and not books.in_flight

        await eventually(enough)
        return self.books()


async def eventually(condition: Callable[[], Awaitable[bool]], patience_s: float = PATIENCE_S) -> None:
    """Wait until a condition holds; fails the test when it does not for too long."""
    deadline_s = time.monotonic() + patience_s
    while not await condition():
        assert time.monotonic() < deadline_s, f"waited {patience_s} s in vain for {condition.__qualname__}"
        await asyncio.sleep(0.05)


class Load:
    """Publishes until told to stop, remembers what the broker acknowledged, and checks that all of it is there.

    Reading `n` is of device `n % DEVICES`, of its own minute, and its kWh is `n / 1000`: each is known by its number.
    """

    DEVICES = 40
    CHUNK = 200
    CHUNK_INTERVAL_S = 0.05

    def __init__(self, port: int) -> None:
        self._port = port
        self._start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(days=2)
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.acknowledged = 0

    async def __aenter__(self) -> "Load":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        assert self._task is not None
        await self._task

    async def more(self, readings: int) -> None:
        """Wait until the broker acknowledged that many more."""
        wanted = self.acknowledged + readings

        async def published_more() -> bool:
            return self.acknowledged >= wanted

        await eventually(published_more)

    async def _run(self) -> None:
        publisher = Publisher(self._port, "load")
        while not self._stop.is_set():
            before = publisher.acknowledged
            try:
                await publisher.publish(self._messages(self.acknowledged, self.acknowledged + self.CHUNK))
            except (PublisherError, OSError):
                await asyncio.sleep(0.2)  # the broker is away
            self.acknowledged += publisher.acknowledged - before
            await asyncio.sleep(self.CHUNK_INTERVAL_S)

    def key(self, number: int) -> tuple[str, datetime]:
        """The device and time of a reading."""
        return f"d{number % self.DEVICES}", self._start + timedelta(seconds=number // self.DEVICES)

    def _messages(self, first: int, after: int) -> Iterator[tuple[str, bytes]]:
        for number in range(first, after):
            device, ts = self.key(number)
            kwh, unix_s = number / 1000, int(ts.timestamp())
            if number % 2:
                yield f"meters/{device}/reading", b'{"kwhConsumedAc":%.3f,"voltage":230,"timestamp":%d}' % (kwh, unix_s)
            else:
                body = b'{"soc":50,"kwhDeliveredDc":%.3f,"batteryTemp":20,"timestamp":%d}' % (kwh, unix_s)
                yield f"vehicles/{device}/reading", body

    async def check(self, database_url: str) -> None:
        """Everything that was acknowledged is in the table, once and with its values; live state is the newest."""
        connection = await asyncpg.connect(database_url)
        try:
            await eventually(lambda: self._all_there(connection))
            for kind in ("meter", "vehicle"):
                behind = await connection.fetchval(
                    f"SELECT count(*) FROM (SELECT {kind}_id, max(ts) AS ts FROM {kind}_reading GROUP BY 1) AS newest "
                    f"FULL JOIN {kind}_status AS s USING ({kind}_id) WHERE s.ts IS DISTINCT FROM newest.ts"
                )
                assert behind == 0, f"{behind} live rows of {kind}s are not the newest reading"
        finally:
            await connection.close()

    async def _all_there(self, connection: asyncpg.Connection) -> bool:
        rows = await connection.fetch(
            "SELECT meter_id AS device, ts, kwh_consumed_ac AS kwh FROM meter_reading "
            "UNION ALL SELECT vehicle_id, ts, kwh_delivered_dc FROM vehicle_reading"
        )
        found = {round(row["kwh"] * 1000): (row["device"], row["ts"]) for row in rows}
        assert len(found) == len(rows), "a reading is there twice"
        assert all(self.key(number) == key for number, key in found.items()), "a reading is not where it belongs"
        return all(number in found for number in range(self.acknowledged))
