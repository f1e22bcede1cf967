"""A whole house for each test: broker, database and daemon, all real."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.broker import PrivateBroker
from dev.house import House
from dev.postgres import PrivatePostgres


@pytest.fixture
def house(tmp_path: Path, broker: PrivateBroker, database_url: str) -> Iterator[House]:
    """A daemon that runs."""
    house = House(tmp_path, broker, database_url, RETENTION_DAYS="0")
    house.start()
    yield house
    house.daemon.stop()


@pytest.fixture
def own_postgres() -> Iterator[PrivatePostgres]:
    """A database server that the test may kill, with all durability on."""
    with tempfile.TemporaryDirectory(prefix="fleetwatt-") as folder:
        server = PrivatePostgres(Path(folder), {"shared_buffers": "64MB"})
        server.start()
        server.create_database("fleetwatt")
        yield server
        server.process.stop()
