"""Where a fault happens: broker, database server, daemon, a network on each of the daemon's two ways, and a load.

The daemon is an ordinary role of the database and not its superuser, so that limits hold for it. It keeps every
rejection (`REJECTIONS_PER_S_MAX` 0), since each is looked for afterwards.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from dev.broker import PrivateBroker
from dev.house import House, eventually
from dev.load import Load
from dev.network import Network
from dev.postgres import PrivatePostgres
from dev.processes import Child, ProcessError, is_root
from sql.migrate import migrate

SERVER_SETTINGS = {"max_connections": "40", "shared_buffers": "64MB", "max_wal_size": "1GB"}
DAEMON_SETTINGS = {"SPOOL_AFTER_S": "2", "REJECTIONS_PER_S_MAX": "0"}
IMMUNE = {"default_transaction_read_only": "off"}
ROLE = "fleetwatt"
TEMPLATE = "fleetwatt_template"
DATABASE = "faults"
MEBIBYTE = 1024 * 1024
DISK_MIB = 256


class CannotMountError(Exception):
    """This process may not mount a small disk."""


class SmallDisk:
    """A disk of its own in memory, that can be filled to the last byte."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    @property
    def free_bytes(self) -> int:
        """What is left on it."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self) -> None:
        """Leave nothing."""
        with self._ballast.open("ab") as ballast:
            while free_bytes := self.free_bytes:
                with contextlib.suppress(OSError):  # somebody else took some of it meanwhile
                    os.posix_fallocate(ballast.fileno(), ballast.tell(), free_bytes)
                ballast.seek(0, os.SEEK_END)

    def free(self) -> None:
        """Leave what was left before."""
        self._ballast.unlink()


@contextmanager
def small_disk(size_mib: int, account: tuple[int, int] | None) -> Iterator[SmallDisk]:
    """A tmpfs for the time of the block; raises CannotMountError for whom the system does not let."""
    with tempfile.TemporaryDirectory(prefix="fleetwatt-disk-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", name]
        if not is_root() or subprocess.run(mount, capture_output=True, check=False).returncode:
            raise CannotMountError("a small disk needs root and the right to mount")
        try:
            place = folder / "place"
            place.mkdir(mode=0o700)
            if account:
                os.chown(place, *account)
            yield SmallDisk(place)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


class Server:
    """A database server of the faults' own, with the migrated schema as a template."""

    def __init__(self, folder: Path, wal_folder: Path | None = None) -> None:
        self.postgres = PrivatePostgres(folder, SERVER_SETTINGS, wal_folder)

    async def start(self) -> None:
        """Start it for the first time."""
        await asyncio.to_thread(self.postgres.start)
        await self.run(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{ROLE}'", f"CREATE DATABASE {TEMPLATE} OWNER {ROLE}")
        connection = await asyncpg.connect(self.url_of_role(TEMPLATE))
        try:
            await migrate(connection)
        finally:
            await connection.close()

    def url_of_role(self, database: str) -> str:
        """The URL by which the daemon would connect without a network between."""
        return f"postgresql://{ROLE}:{ROLE}@127.0.0.1:{self.postgres.port}/{database}"

    async def run(self, *statements: str) -> None:
        """Run statements as the superuser, each in a transaction of its own."""
        for statement in statements:
            await self.value(statement)

    async def value(self, statement: str, *arguments: Any, database: str = "postgres") -> Any:
        """The first value that a statement gives the superuser, whom no fault of the server's settings concerns."""
        connection = await asyncpg.connect(self.postgres.url(database), server_settings=IMMUNE)
        try:
            return await connection.fetchval(statement, *arguments)
        finally:
            await connection.close()

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every process of the server, whose sessions are their own."""
        main = psutil.Process(self.postgres.process.pid)
        for process in (main, *main.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


class Stage:
    """All that a fault may touch."""

    def __init__(
        self, server: Server, house: House, to_broker: Network, to_database: Network, disk: SmallDisk | None
    ) -> None:
        self.server = server
        self.house = house
        self.to_broker = to_broker
        self.to_database = to_database
        self.load = Load(house.broker.port)
        self._disk = disk
        self.spooled_max = 0
        """The most that was seen in the spool."""

    @property
    def daemon(self) -> Child:
        """The daemon's process."""
        return self.house.daemon

    @property
    def database_url(self) -> str:
        """The superuser's straight way to the database of this stage."""
        return self.server.postgres.url(DATABASE)

    @property
    def disk(self) -> SmallDisk:
        """The small disk, of a stage that has one."""
        if self._disk is None:
            raise ProcessError("this stage has no small disk")
        return self._disk

    async def start_daemon(self) -> None:
        """Start it, whoever else is there."""
        await asyncio.to_thread(self.daemon.start, self.house.is_alive)

    async def spooled(self) -> int:
        """Readings in the spool, by the daemon's own count."""
        spooled = (await asyncio.to_thread(self.house.books)).spooled
        self.spooled_max = max(self.spooled_max, spooled)
        return spooled


@asynccontextmanager
async def set_stage(
    folder: Path,
    server: Server,
    settings: Mapping[str, str],
    broker_settings: Mapping[str, str],
    disk_for: str | None,
) -> AsyncIterator[Stage]:
    """A stage with a fresh database. `disk_for` puts one thing on a small disk: `database`, `wal` or `spool`."""
    await asyncio.to_thread(folder.mkdir, parents=True)
    async with AsyncExitStack() as stack:
        disk = stack.enter_context(small_disk(DISK_MIB, server.postgres.account)) if disk_for else None
        if disk and disk_for == "wal":
            server = await stack.enter_async_context(_server_with_wal_on(disk))
        await stack.enter_async_context(_database(server, disk if disk_for == "database" else None))
        broker = PrivateBroker(folder / "mosquitto", broker_settings)
        stack.callback(broker.process.stop)
        await asyncio.to_thread(broker.start)
        to_broker = stack.enter_context(Network(broker.url))
        to_database = stack.enter_context(Network(server.url_of_role(DATABASE)))
        spool = disk.folder if disk and disk_for == "spool" else folder / "spool"
        spool.mkdir(exist_ok=True)
        given = {**DAEMON_SETTINGS, "MQTT_URL": to_broker.url, "SPOOL_DIR": str(spool), **settings}
        house = House(folder, broker, to_database.url, **given)
        stack.callback(house.daemon.stop)
        await asyncio.to_thread(house.start)
        await _session_is_saved(broker, folder)
        yield Stage(server, house, to_broker, to_database, disk)


@asynccontextmanager
async def _server_with_wal_on(disk: SmallDisk) -> AsyncIterator[Server]:
    with tempfile.TemporaryDirectory(prefix="fleetwatt-") as folder:
        server = Server(Path(folder), disk.folder / "wal")
        (disk.folder / "wal").mkdir(mode=0o700)
        if server.postgres.account:
            os.chown(disk.folder / "wal", *server.postgres.account)
        try:
            await server.start()
            yield server
        finally:
            await asyncio.to_thread(server.postgres.process.stop)


@asynccontextmanager
async def _database(server: Server, disk: SmallDisk | None) -> AsyncIterator[None]:
    await server.run(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")  # of a stage that was not taken down
    if disk:
        await server.run(f"CREATE TABLESPACE small LOCATION '{disk.folder}'")
    where = " TABLESPACE small" if disk else ""
    await server.run(f"CREATE DATABASE {DATABASE} TEMPLATE {TEMPLATE} OWNER {ROLE}{where}")
    try:
        yield
    finally:
        if not server.postgres.process.is_running:  # a fault that went wrong may leave it so
            await asyncio.to_thread(server.postgres.start)
        await server.run(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        if disk:
            await server.run("DROP TABLESPACE small")


async def _session_is_saved(broker: PrivateBroker, folder: Path) -> None:
    """Have the broker save the daemon's session, as it would have within its first seconds."""
    saved = folder / "mosquitto" / "mosquitto.db"

    async def is_there() -> bool:
        return saved.exists()

    broker.process.signal(signal.SIGUSR1)
    await eventually(is_there)
