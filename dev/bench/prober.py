"""Publishes readings of one device at random moments and looks for them in the database, in a process of its own."""

import asyncio
import json
import logging
import random
import time
from datetime import UTC, datetime

import aiomqtt
import asyncpg
from msgspec import Struct

from dev.bench.worker import Reports, run

DEVICE = "probe"
PER_S = 20.0
POLL_S = 0.001
_LOOK = "SELECT ts FROM meter_reading WHERE meter_id = $1 AND ts >= $2"


class ProbeOptions(Struct, frozen=True):
    """Where to publish and where to look."""

    port: int
    database_url: str


class ProbeCounts(Struct):
    """What came back."""

    came_back: int = 0
    latencies_s: list[float] = []
    """Of each; told at the end."""
    polls: int = 0
    """While a probe was under way."""
    seconds: float = 0.0
    """That those polls took, with the waits between them."""


class Prober:
    """Probes under way, and how long those took that came back."""

    def __init__(self, options: ProbeOptions) -> None:
        self._options = options
        self._latencies_s: list[float] = []
        self._polls, self._polled_s = 0, 0.0
        self._sent_at_s: dict[datetime, float] = {}
        """Time of measurement, which is the key in the table -> when it was published."""
        self._news = asyncio.Event()
        self._all_back = asyncio.Event()
        """Nothing is under way, and nothing was asked yet."""
        self._all_back.set()
        self._quiet = logging.getLogger("fleetwatt.prober")
        self._quiet.setLevel(logging.ERROR)  # aiomqtt warns of more than ten messages at once, which are meant

    async def run(self, reports: Reports) -> None:
        """Probe until the bench says it is enough, and wait for what is under way."""
        connection = await asyncpg.connect(self._options.database_url)
        client = aiomqtt.Client("127.0.0.1", self._options.port, identifier=DEVICE, logger=self._quiet)
        async with client, asyncio.TaskGroup() as group:
            looking = group.create_task(self._look(connection), name="look")
            probing = group.create_task(self._probe(client, group), name="probe")
            await reports.attend(lambda: ProbeCounts(len(self._latencies_s)))
            probing.cancel()
            await self._all_back.wait()
            looking.cancel()
        await connection.close()
        reports.say(ProbeCounts(len(self._latencies_s), self._latencies_s, self._polls, self._polled_s))

    async def _probe(self, client: aiomqtt.Client, group: asyncio.TaskGroup) -> None:
        while True:
            # As seldom regular as real devices; never in step with the daemon's batches.
            await asyncio.sleep(random.uniform(0, 2 / PER_S))  # noqa: S311 - spreads, keeps no secret
            group.create_task(self._publish(client), name="publish")

    async def _publish(self, client: aiomqtt.Client) -> None:
        ts = datetime.now(UTC)
        self._sent_at_s[ts] = time.perf_counter()
        self._all_back.clear()
        self._news.set()
        reading = {"kwhConsumedAc": 0.25, "voltage": 230.0, "timestamp": ts.isoformat()}
        await client.publish(f"meters/{DEVICE}/reading", json.dumps(reading), qos=1)

    async def _look(self, connection: asyncpg.Connection) -> None:
        look = await connection.prepare(_LOOK)
        while True:
            if not self._sent_at_s:
                self._all_back.set()
                self._news.clear()
                await self._news.wait()
            began_at_s = time.perf_counter()
            rows = await look.fetch(DEVICE, min(self._sent_at_s))
            now_s = time.perf_counter()
            for row in rows:
                if (sent_at_s := self._sent_at_s.pop(row["ts"], None)) is not None:
                    self._latencies_s.append(now_s - sent_at_s)
            await asyncio.sleep(POLL_S)
            self._polls += 1
            self._polled_s += time.perf_counter() - began_at_s


async def probe(options: ProbeOptions, reports: Reports) -> None:
    """Probe until the bench says it is enough."""
    await Prober(options).run(reports)


if __name__ == "__main__":
    run(probe, ProbeOptions)
