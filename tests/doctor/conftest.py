"""What the doctor is shown: the shipped broker and a database with an owner of its own, both real."""

import asyncio
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from dev.broker import PrivateBroker
from dev.postgres import PrivatePostgres
from sql.migrate import migrate
from tests.certificates import Authority
from tests.doctor.house import House, make_owner, make_passwords, shipped_broker, url_as_owner

TEMPLATE = "owned_template"
_numbers = itertools.count(1)

StartHouse = Callable[..., House]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Authority(tmp_path_factory.mktemp("certificates")).folder


@pytest.fixture(scope="session")
def passwords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_passwords(tmp_path_factory.mktemp("passwords") / "passwords")


@pytest.fixture(scope="session")
def durable() -> Iterator[PrivatePostgres]:
    """A server as production has it: durable, and the account owns its database and nothing else."""
    with tempfile.TemporaryDirectory(prefix="fleetwatt-") as folder:
        server = PrivatePostgres(Path(folder), {"shared_buffers": "64MB", "max_prepared_transactions": "2"})
        server.start()
        try:
            asyncio.run(_prepare(server))
            yield server
        finally:
            server.process.stop()


async def _prepare(server: PrivatePostgres) -> None:
    await make_owner(server)
    server.create_database(TEMPLATE)
    await _give(server, TEMPLATE)
    connection = await asyncpg.connect(url_as_owner(server, TEMPLATE))
    await migrate(connection)
    await connection.close()


async def _give(server: PrivatePostgres, database: str) -> None:
    connection = await asyncpg.connect(server.url("postgres"))
    await connection.execute(f"ALTER DATABASE {database} OWNER TO fleetwatt")
    await connection.close()


@pytest.fixture
def owned_database(durable: PrivatePostgres) -> Iterator[str]:
    """The name of a database of the test's own, with the schema."""
    name = f"owned_{next(_numbers)}"
    durable.create_database(name, TEMPLATE)
    asyncio.run(_give(durable, name))
    yield name
    durable.drop_database(name)


@pytest.fixture
def owned_url(durable: PrivatePostgres, owned_database: str) -> str:
    """Its address, for its owner."""
    return url_as_owner(durable, owned_database)


@pytest.fixture
def start_house(tmp_path: Path, certificates: Path, passwords: Path, owned_url: str) -> Iterator[StartHouse]:
    """Starts a broker with the shipped configuration (and `changes` to it), and gives it a house."""
    houses: list[House] = []

    def start(changes: dict[str, str | None] | None = None, **settings: str) -> House:
        broker = shipped_broker(tmp_path / "mosquitto", certificates, passwords, **(changes or {}))
        broker.start()
        url = f"mqtts://fleetwatt:daemon-secret@localhost:{broker.port}"
        houses.append(
            House(tmp_path, broker, url, owned_url, **{"MQTT_CA_FILE": str(certificates / "ca.crt"), **settings})
        )
        return houses[-1]

    yield start
    for house in houses:
        house.daemon.stop()
        house.broker.process.stop()


@pytest.fixture
def house(start_house: StartHouse) -> House:
    """With no daemon yet."""
    return start_house()


@pytest.fixture
def open_house(tmp_path: Path, owned_url: str) -> Iterator[StartHouse]:
    """The same with the broker of `python -m dev run`, which lets anybody in."""
    houses: list[House] = []

    def start(changes: dict[str, str | None] | None = None, **settings: str) -> House:
        broker = PrivateBroker(tmp_path / "mosquitto", changes)
        broker.start()
        houses.append(House(tmp_path, broker, broker.url, owned_url, **settings))
        return houses[-1]

    yield start
    for house in houses:
        house.daemon.stop()
        house.broker.process.stop()
