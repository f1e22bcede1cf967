"""A real PostgreSQL and a real Mosquitto for every test that wants one. Nothing here stands in for either."""

import asyncio
import itertools
import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest
import structlog

from dev.broker import PrivateBroker
from dev.postgres import PrivatePostgres
from sql.migrate import migrate
from sql.pool import Pool, open_pool
from tests.certificates import Authority

TEMPLATE = "fleetwatt_template"
Connect: TypeAlias = Callable[[str], Awaitable[asyncpg.Connection]]
_numbers = itertools.count(1)


LONGEST = ("tests/web/test_browser", "tests/flow", "tests/test_rollups", "tests/api/test_schemathesis")
"""Files that begin first, so that at the end no process is left alone with one of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Processes share out the tests by name, so the time at which one starts must not be in any."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    if of_today := [item.nodeid for item in items if today in item.nodeid]:
        raise pytest.UsageError(f"the names of these tests change with the clock, give them `ids`: {of_today}")


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A test that configures the logs, as each command line does, leaves nothing of it to the next."""
    root, uvicorn = logging.getLogger(), logging.getLogger("uvicorn")
    before = (root.handlers[:], root.level, uvicorn.level)
    yield
    root.handlers[:], root.level, uvicorn.level = before
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    """One server for the whole run, with the migrated schema as a template. What it stores need not last."""
    # Not in pytest's own folder: the next pytest that starts closes that to others, among them this server's account.
    with tempfile.TemporaryDirectory(prefix="fleetwatt-") as folder:
        server = PrivatePostgres(Path(folder), {"fsync": "off", "shared_buffers": "128MB"})
        server.start()
        try:
            server.create_database(TEMPLATE)
            asyncio.run(_migrate(server.url(TEMPLATE)))
            yield server
        finally:
            server.process.stop()


async def _migrate(url: str) -> None:
    connection = await asyncpg.connect(url)
    await migrate(connection)
    await connection.close()


@pytest.fixture
def database_url(postgres: PrivatePostgres) -> Iterator[str]:
    """A database of the test's own, with the schema."""
    name = f"test_{next(_numbers)}"
    postgres.create_database(name, TEMPLATE)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the test's own database."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close(timeout=5)


@pytest.fixture
async def connected() -> AsyncIterator[Connect]:
    """Connects to the database of a URL; whatever becomes of the test, its connections end with it."""
    connections: list[asyncpg.Connection] = []

    async def connect(url: str) -> asyncpg.Connection:
        connections.append(await asyncpg.connect(url))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.terminate()


@pytest.fixture(scope="module")
def shared_url(postgres: PrivatePostgres) -> Iterator[str]:
    """One for the tests of a file that do not mind what the others store, or empty it: quicker than a new one."""
    name = f"shared_{next(_numbers)}"
    postgres.create_database(name, TEMPLATE)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
async def shared(shared_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to that database."""
    connection = await asyncpg.connect(shared_url)
    yield connection
    await connection.close(timeout=5)


@pytest.fixture
def own_postgres() -> Iterator[PrivatePostgres]:
    """A server that the test may stop, with an empty database `fleetwatt`."""
    with tempfile.TemporaryDirectory(prefix="fleetwatt-") as folder:
        server = PrivatePostgres(Path(folder), {"fsync": "off", "shared_buffers": "32MB"})
        server.start()
        server.create_database("fleetwatt")
        yield server
        server.process.stop()


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """A pool as the daemon has it, on the test's own database."""
    async with open_pool(database_url, "test", 4) as pool:
        yield pool


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[PrivateBroker]:
    """A broker of the test's own, as `python -m dev run` has it."""
    broker = PrivateBroker(tmp_path / "mosquitto")
    broker.start()
    yield broker
    broker.process.stop()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that both sides know."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that the other side does not know."""
    return Authority(tmp_path_factory.mktemp("strangers"))
