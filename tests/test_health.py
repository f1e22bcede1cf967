"""`/livez`, `/readyz` and `/metrics` of a daemon in this process, over real HTTP, with a real broker and database."""

import asyncio
import http.client
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from msgspec import Struct

from daemon import health
from daemon import maintenance as maintenance_module
from daemon.service import serve
from daemon.settings import DaemonSettings
from daemon.status import LastProblem
from dev.books import parse_books
from dev.broker import PrivateBroker
from dev.house import eventually
from dev.postgres import PrivatePostgres
from dev.processes import free_port
from dev.publisher import Publisher
from sql.migrate import migrate
from sql.settings import SettingsError

READING = b'{"kwhConsumedAc": 1, "voltage": 230}'
_numbers = itertools.count(1)


class Answer(Struct):
    """What the daemon said over HTTP."""

    status: int
    content_type: str
    text: str

    @property
    def faults(self) -> list[str]:
        """What keeps the daemon from being ready."""
        told = json.loads(self.text)
        assert told["ready"] is (self.status == 200)
        assert told["ready"] is not bool(told["faults"])
        return [str(fault) for fault in told["faults"]]


class Daemon:
    """The daemon as its HTTP routes show it."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def get(self, path: str, accept: str = "*/*") -> Answer:
        """One request."""
        return await asyncio.to_thread(self._get, path, accept)

    def _get(self, path: str, accept: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("GET", path, headers={"Accept": accept})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers["content-type"], answer.read().decode())
        finally:
            connection.close()

    async def ready(self) -> None:
        """Wait until it says that it is ready."""

        async def says_so() -> bool:
            return (await self.get("/readyz")).status == 200

        await eventually(says_so)

    async def not_ready(self, fault: str) -> None:
        """Wait until it says that it is not, with one fault that begins with these words; it must be alive as well."""

        async def says_so() -> bool:
            answer = await self.get("/readyz")
            return answer.status == 503 and any(each.startswith(fault) for each in answer.faults)

        await eventually(says_so)
        assert (await self.get("/livez")).status == 200


@asynccontextmanager
async def running(
    broker: PrivateBroker, database_url: str, last_problem: LastProblem | None = None, **more: Any
) -> AsyncIterator[Daemon]:
    """A daemon for the time of the block, which must end in good order; `more` are further settings."""
    port = free_port()
    settings = DaemonSettings(
        database_url=database_url, mqtt_url=broker.url, metrics_port=port, retention_days=0, **more
    )
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(settings, last_problem or LastProblem(), stop))
    daemon = Daemon(port)

    async def listens() -> bool:
        try:
            return (await daemon.get("/livez")).status == 200
        except OSError:
            return False

    try:
        await eventually(listens)
        yield daemon
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await serving


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance_module, "FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(maintenance_module, "LONGEST_RETRY_S", 0.1)


async def publish(broker: PrivateBroker, *readings: tuple[str, bytes]) -> None:
    await Publisher(broker.port, f"device-{next(_numbers)}").publish(readings)


async def test_a_daemon_that_does_its_work_is_alive_and_ready(broker: PrivateBroker, database_url: str) -> None:
    async with running(broker, database_url) as daemon:
        await daemon.ready()
        assert (await daemon.get("/readyz")).faults == []
        assert (await daemon.get("/livez")).text == "alive\n"
        assert (await daemon.get("/nowhere")).status == 404


async def test_it_is_not_ready_without_its_broker(broker: PrivateBroker, database_url: str) -> None:
    async with running(broker, database_url) as daemon:
        await daemon.ready()
        await asyncio.to_thread(broker.process.stop)
        await daemon.not_ready("not subscribed at the broker")
        await asyncio.to_thread(broker.start)
        await daemon.ready()


async def test_it_is_not_ready_without_its_schema_nor_without_its_database(
    broker: PrivateBroker, own_postgres: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "COMMIT_FRESH_S", 0.0)
    url = own_postgres.url("fleetwatt")
    async with running(broker, url) as daemon:
        await daemon.not_ready("the database has no schema yet; run: python -m daemon migrate")
        connection = await asyncpg.connect(url)
        await migrate(connection)
        await connection.close()
        await daemon.ready()

        await asyncio.to_thread(own_postgres.process.stop)
        await daemon.not_ready("the database does not answer: ")
        await asyncio.to_thread(own_postgres.start)
        await daemon.ready()


async def test_it_is_not_ready_while_commits_do_not_follow_arrivals(
    broker: PrivateBroker, database_url: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "WAITING_MAX_S", 0.2)
    async with running(broker, database_url) as daemon:
        await daemon.ready()
        async with database.transaction():
            await database.execute("LOCK TABLE meter_reading")
            await publish(broker, ("meters/m1/reading", READING))
            await daemon.not_ready("readings have been waiting for ")
            assert len((await daemon.get("/readyz")).faults) == 1
        await daemon.ready()
    assert await database.fetchval("SELECT count(*) FROM meter_reading") == 1


async def test_the_metrics_close_the_books(broker: PrivateBroker, database_url: str) -> None:
    async with running(broker, database_url) as daemon:
        await daemon.ready()
        again = ("vehicles/v1/reading", b'{"soc":50,"kwhDeliveredDc":1,"batteryTemp":20,"timestamp":1700000000}')
        await publish(broker, ("meters/m1/reading", READING), again, again, ("meters/m1/reading", b"garbage"))
        await publish(broker, *[("meters/m1/reading", b"[" + READING + b", 7]")] * 100)

        async def settled() -> bool:
            books = parse_books((await daemon.get("/metrics")).text)
            assert books.received == books.settled + books.spooled + books.in_flight
            assert books.unaccounted == 0
            return books.settled == 204

        await eventually(settled)
        answer = await daemon.get("/metrics")
        assert answer.content_type.startswith("text/plain; version=")
        books = parse_books(answer.text)
        assert (books.received, books.duplicate, books.in_flight) == (204, 1, 0)
        assert books.stored == {"meter": 101, "vehicle": 1}
        assert books.rejected == {"malformed_json": 1, "wrong_type": 100}


async def test_a_port_in_use_is_a_setting_to_be_corrected(broker: PrivateBroker, database_url: str) -> None:
    port = urlsplit(database_url).port
    assert port is not None
    settings = DaemonSettings(database_url=database_url, mqtt_url=broker.url, metrics_port=port, retention_days=0)
    with pytest.raises(SettingsError, match=f"METRICS_HOST and METRICS_PORT are '127.0.0.1' and {port}"):
        await serve(settings, LastProblem(), asyncio.Event())
