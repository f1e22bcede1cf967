"""An installation for the doctor to look at: the shipped broker with accounts and TLS, a database with an owner."""

import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import mqtt5
from mqtt5 import QoS, RetainHandling, TopicFilter

from daemon.doctor.examination import Options, examine
from daemon.doctor.findings import Finding
from daemon.doctor.probe import Probe
from daemon.maintenance import days_ahead
from daemon.subscriber import SESSION_EXPIRY_S, TOPICS
from dev.broker import PrivateBroker
from dev.postgres import PrivatePostgres
from dev.processes import Child, free_port
from sql.partitions import HISTORY_TABLES, Days

ROOT = Path(__file__).parent.parent.parent
SHIPPED = ROOT / "mosquitto"
PASSWORDS = {"fleetwatt": "daemon-secret", "meter-1": "first-secret", "prober": "prober-secret"}
DATABASE_PASSWORD = "database-secret"


def make_passwords(path: Path) -> Path:
    path.write_text("".join(f"{name}:{password}\n" for name, password in PASSWORDS.items()))
    subprocess.run(["mosquitto_passwd", "-U", str(path)], check=True)
    return path


FILTERS = [
    TopicFilter(
        topic,
        max_qos=QoS.AT_LEAST_ONCE,
        retain_as_published=False,
        retain_handling=RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS,
    )
    for topic in TOPICS
]


class House:
    """Broker, database and, when it is started, a daemon; `environ` is what the daemon and the doctor are given."""

    def __init__(self, folder: Path, broker: PrivateBroker, mqtt_url: str, database_url: str, **settings: str) -> None:
        self.broker = broker
        self.database_url = database_url
        self.environ = {
            "MQTT_URL": mqtt_url,
            "DATABASE_URL": database_url,
            "METRICS_PORT": str(free_port()),
            "SPOOL_DIR": str(folder / "spool"),
            # The developer's machine may be small; what is too little room is tested where the figure is given.
            "SPOOL_BYTES_MAX": "1048576",
            **settings,
        }
        (folder / "spool").mkdir(exist_ok=True)
        self.daemon = Child("daemon", [sys.executable, "-m", "daemon"], folder, env=self._process_environ, cwd=ROOT)

    def _process_environ(self) -> Mapping[str, str]:
        return {**os.environ, **self.environ}

    def start_daemon(self) -> None:
        """Until it is ready."""
        self.daemon.start(self._is_ready)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.environ['METRICS_PORT']}/readyz", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    async def check(self, options: Options | None = None, **changes: str) -> dict[str, Finding]:
        """The doctor's findings, in order and by name; each name comes once."""
        found: list[Finding] = []
        configuration = self.broker.process.log.parent / "mosquitto.conf"
        options = options or Options(configuration=configuration)
        await examine({**self.environ, **changes}, options, found.append)
        assert len({finding.name for finding in found}) == len(found)
        for finding in found:
            assert bool(finding.remedy) == (finding.level in ("warning", "failure")), finding
        return {finding.name: finding for finding in found}

    def run(self, *arguments: str, **changes: str) -> "subprocess.CompletedProcess[str]":
        """`python -m daemon check` as a technician runs it."""
        configuration = str(self.broker.process.log.parent / "mosquitto.conf")
        command = [sys.executable, "-m", "daemon", "check", "--broker-configuration", configuration, *arguments]
        environ = {**self._process_environ(), **changes}
        return subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=90)


def shipped_broker(folder: Path, certificates: Path, passwords: Path, **changes: str | None) -> PrivateBroker:
    """The shipped configuration, with all of its walls."""
    return PrivateBroker(
        folder,
        {
            "cafile": str(certificates / "ca.crt"),
            "certfile": str(certificates / "server.crt"),
            "keyfile": str(certificates / "server.key"),
            "password_file": str(passwords),
            "acl_file": str(SHIPPED / "acl"),
            "allow_anonymous": "false",
            "use_username_as_clientid": "true",
            **changes,
        },
    )


@contextmanager
def running(broker: PrivateBroker) -> Iterator[PrivateBroker]:
    broker.start()
    try:
        yield broker
    finally:
        broker.process.stop()


async def make_owner(server: PrivatePostgres) -> None:
    """The account that owns the database and nothing else, as docs/systemd.md has it."""
    connection = await asyncpg.connect(server.url("postgres"))
    await connection.execute(f"CREATE ROLE fleetwatt LOGIN PASSWORD '{DATABASE_PASSWORD}'")
    await connection.close()


def url_as_owner(server: PrivatePostgres, database: str) -> str:
    return f"postgresql://fleetwatt:{DATABASE_PASSWORD}@127.0.0.1:{server.port}/{database}"


def trust(house: House) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=house.environ["MQTT_CA_FILE"])


async def enter(house: House, receive_maximum: int = 100) -> tuple[Probe, bool]:
    """As the daemon does; says whether its session was there."""
    async with AsyncExitStack() as stack:
        probe = await stack.enter_async_context(await Probe.open("localhost", house.broker.port, trust(house)))
        connack = await probe.connect(
            mqtt5.ConnectPacket(
                house.environ.get("MQTT_CLIENT_ID", "fleetwatt"),
                username="fleetwatt",
                password=PASSWORDS["fleetwatt"].encode(),
                clean_start=False,
                session_expiry_interval=SESSION_EXPIRY_S,
                receive_max=receive_maximum,
            )
        )
        stack.pop_all()  # from here on it is the caller's
    return probe, connack.session_present


async def leave_a_session(house: House) -> None:
    """The daemon was there once, subscribed, and is away now."""
    probe, _ = await enter(house)
    async with probe:
        await probe.subscribe(FILTERS)
        await probe.leave(forget=False)


async def settle(house: House) -> None:
    """As the daemon leaves it when it is stopped in good order."""
    await leave_a_session(house)
    await make_days(house)


async def make_days(house: House) -> None:
    """The partitions that a daemon makes in its first moments."""
    connection = await asyncpg.connect(house.database_url)
    try:
        for table in HISTORY_TABLES:
            await Days().ensure(connection, table, days_ahead(datetime.now(UTC).date()))
    finally:
        await connection.close()


def troubles(found: dict[str, Finding]) -> set[str]:
    """What is not in order, beside the daemon that does not run."""
    return {name for name, finding in found.items() if finding.level in ("warning", "failure")} - {"daemon.runs"}
