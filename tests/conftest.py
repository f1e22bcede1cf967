"""A real PostgreSQL and a real Mosquitto for every test that wants one. Nothing here stands in for either."""

import asyncio
import itertools
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import structlog

from dev.broker import PrivateBroker
from dev.postgres import PrivatePostgres
from sql.migrate import migrate
from sql.pool import Pool, open_pool

TEMPLATE = "fleetwatt_template"
_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A test that configures the logs, as each command line does, leaves nothing of it to the next."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
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
