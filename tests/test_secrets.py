"""No secret leaves a process: not by its log, its answers, its command line, nor what the database shows of it.

Real processes, at the level debug, in the ways that something goes wrong. What is looked for is each secret as it is,
percent-encoded, in Python's and in JSON's spelling, and in base64.
"""

import asyncio
import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote, quote_plus

import asyncpg
import psutil
import pytest
from msgspec import Struct

from api.auth import Role, new_token
from dev.broker import PrivateBroker
from dev.house import ROOT, eventually
from dev.postgres import PrivatePostgres
from dev.processes import Child, free_port
from tests.certificates import Authority

DATABASE_PASSWORD = "d@ta/base?pass#wörd%'1"
BROKER_PASSWORD = "br0ker-p@ss/w?rd#%\\2"
WRONG_PASSWORD = "wr0ng p@ss/w+rd%3"
SHARE_GROUP = "group-that-nobody-guesses"
GUESSED_TOKEN = "fw_a-token-that-is-not-known"
ROLE = "secret_keeper"

PATHS = ("/livez", "/readyz", "/health", "/metrics", "/status", "/openapi.json", "/docs", "/v1/meters", "/nowhere")


def spellings(secret: str) -> set[str]:
    """The ways in which a secret may be written."""
    quoted = quote(secret, safe="")
    found = {secret, quoted, quoted.lower(), quote(secret), quote_plus(secret), repr(secret)[1:-1]}
    found |= {repr(secret.encode())[2:-1], json.dumps(secret)[1:-1], base64.b64encode(secret.encode()).decode()}
    return found


class Secrets(Struct):
    """What nobody may see, and the files that hold it."""

    known: set[str]
    tokens_file: Path
    token: str
    certificate: Path
    key: Path

    def seen_in(self, text: str) -> set[str]:
        """Those that a text shows; empty where all is well."""
        return {secret for secret in self.known if any(spelling in text for spelling in spellings(secret))}


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    token, line = new_token(Role.admin, "a-technician")
    tokens_file = tmp_path / "tokens"
    tokens_file.write_text(f"{line}\n")
    certificate, key = Authority(tmp_path / "authority").client("fleetwatt")
    known = {DATABASE_PASSWORD, BROKER_PASSWORD, WRONG_PASSWORD, SHARE_GROUP, GUESSED_TOKEN, token}
    known |= {line.split()[0].removeprefix("sha256:"), *key.read_text().splitlines()[1:-1]}
    return Secrets(known, tokens_file, token, certificate, key)


@pytest.fixture(scope="module")
def role(postgres: PrivatePostgres) -> Iterator[str]:
    """A role with a difficult password; it goes when the databases with what it made are gone."""
    literal = DATABASE_PASSWORD.replace("'", "''")
    asyncio.run(execute(postgres.url("postgres"), f"CREATE ROLE {ROLE} SUPERUSER LOGIN PASSWORD '{literal}'"))
    yield ROLE
    asyncio.run(execute(postgres.url("postgres"), f"DROP ROLE {ROLE}"))


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
def keeper(role: str, database_url: str) -> str:
    """Host and name of the test's database, for an address with that role."""
    assert role
    return database_url.rpartition("@")[2]


@pytest.fixture
def locked_broker(tmp_path: Path) -> Iterator[PrivateBroker]:
    """A broker that asks for the password."""
    passwords = tmp_path / "passwords"
    passwords.write_text(f"fleetwatt:{BROKER_PASSWORD}\nmeter-1:known\n")
    subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True)
    settings = {"allow_anonymous": "false", "password_file": str(passwords)}
    broker = PrivateBroker(tmp_path / "mosquitto", settings)
    broker.start()
    yield broker
    broker.process.stop()


class Processes:
    """Daemon and sidecar, told too much."""

    def __init__(self, folder: Path, secrets: Secrets, mqtt_url: str, database_url: str, **settings: str) -> None:
        self.ports = [free_port(), free_port()]
        given = {"METRICS_PORT": str(self.ports[0]), "API_PORT": str(self.ports[1]), "LOG_LEVEL": "debug"}
        given |= {"API_TOKENS_FILE": str(secrets.tokens_file), "PYTHONASYNCIODEBUG": "1"}
        given |= {"MQTT_SHARE_GROUP": SHARE_GROUP, "MQTT_CLIENT_ID": "fleetwatt-1"}
        if settings["LOG_FORMAT"] == "json":  # one way to give a secret with each format
            for name, value in (("MQTT_URL", mqtt_url), ("DATABASE_URL", database_url)):
                (folder / name).write_text(value)
                given[f"{name}_FILE"] = str(folder / name)
        else:
            given |= {"MQTT_URL": mqtt_url, "DATABASE_URL": database_url}
        environment = {**os.environ, **given, **settings}
        self.secrets = secrets
        self.daemon, self.api = (
            Child(name, [sys.executable, "-m", name], folder, env=lambda: environment, cwd=ROOT)
            for name in ("daemon", "api")
        )

    def answers(self, token: str) -> Iterator[str]:
        """What both say to somebody with this token, heads and bodies."""
        for port in self.ports:
            for path in PATHS:
                yield f"{port}{path}: {fetch(f'http://127.0.0.1:{port}{path}', token)}"

    def outside(self) -> Iterator[str]:
        """All that somebody else can see of both."""
        for token in (self.secrets.token, GUESSED_TOKEN):
            yield from self.answers(token)
        for process in (self.daemon, self.api):
            yield "\n".join(psutil.Process(process.pid).cmdline())

    def logs(self) -> Iterator[str]:
        for process in (self.daemon, self.api):
            yield process.log.read_text(encoding="utf-8")

    def end(self) -> None:
        for process in (self.daemon, self.api):
            assert process.stop() == 0, process.log_tail()


def fetch(url: str, token: str) -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return f"{answer.headers}{answer.read().decode()}"
    except urllib.error.HTTPError as error:
        return f"{error.headers}{error.read().decode()}"


def mqtt_url(broker: PrivateBroker, password: str = BROKER_PASSWORD) -> str:
    return f"mqtt://fleetwatt:{quote(password, safe='')}@127.0.0.1:{broker.port}"


def database_url(rest: str, password: str = DATABASE_PASSWORD) -> str:
    return f"postgresql://{ROLE}:{quote(password, safe='')}@{rest}"


FAULTS = ("wrong password", "host not found", "nobody there", "no TLS there")
LogFormat = Literal["console", "json"]


def faulty(fault: str, broker: PrivateBroker, rest: str, secrets: Secrets) -> tuple[str, str, dict[str, str]]:
    """Both addresses with this fault, and settings that go with it."""
    good_mqtt, good_database = mqtt_url(broker), database_url(rest)
    match fault:
        case "wrong password":
            return mqtt_url(broker, WRONG_PASSWORD), database_url(rest, WRONG_PASSWORD), {}
        case "host not found":
            name = "no-such-host.invalid"
            return good_mqtt.replace("127.0.0.1", name), good_database.replace("127.0.0.1", name), {}
        case "nobody there":
            port = rest.partition("/")[0].rpartition(":")[2]
            return good_mqtt.replace(str(broker.port), "9"), good_database.replace(f":{port}/", ":9/"), {}
        case _:
            files = {"MQTT_CERT_FILE": str(secrets.certificate), "MQTT_KEY_FILE": str(secrets.key)}
            return good_mqtt.replace("mqtt:", "mqtts:"), f"{good_database}?sslmode=require", files


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_does_not_bring_a_secret_to_light(
    tmp_path: Path, locked_broker: PrivateBroker, keeper: str, secrets: Secrets, fault: str, log_format: LogFormat
) -> None:
    mqtt, database, settings = faulty(fault, locked_broker, keeper, secrets)
    processes = Processes(tmp_path, secrets, mqtt, database, LOG_FORMAT=log_format, **settings)
    said = ("broker away, trying again", "maintenance failed, trying again")
    processes.daemon.start(lambda: all(text in next(processes.logs()) for text in said))
    processes.api.start(lambda: "database away" in processes.api.log.read_text(encoding="utf-8"))
    shown = [*processes.outside()]
    processes.end()
    for text in [*shown, *processes.logs()]:
        assert not secrets.seen_in(text), text


@pytest.mark.parametrize("log_format", ["console", "json"])
async def test_a_good_day_does_not_bring_a_secret_to_light(
    tmp_path: Path,
    locked_broker: PrivateBroker,
    keeper: str,
    database: asyncpg.Connection,
    secrets: Secrets,
    log_format: LogFormat,
) -> None:
    processes = Processes(tmp_path, secrets, mqtt_url(locked_broker), database_url(keeper), LOG_FORMAT=log_format)
    processes.daemon.start(lambda: "subscribed" in next(processes.logs()))
    processes.api.start(lambda: "ready" in safe_fetch(processes.ports[1], secrets.token))
    command = ["mosquitto_pub", "-p", str(locked_broker.port), "-u", "meter-1", "-P", "known", "-q", "1"]
    for payload in ('{"kwhConsumedAc":1,"voltage":230}', '{"kwhConsumedAc":'):
        published = [*command, "-t", "meters/meter-1/reading", "-m", payload]
        await asyncio.to_thread(subprocess.run, published, check=True, timeout=30)

    async def stored_and_rejected() -> bool:
        return bool(
            await database.fetchval("SELECT (SELECT count(*) FROM meter_reading) * (SELECT count(*) FROM rejection)")
        )

    await eventually(stored_and_rejected)
    shown = [*processes.outside()]
    rows = await database.fetch("SELECT application_name, query FROM pg_stat_activity")
    shown += [f"{row['application_name']} {row['query']}" for row in rows]
    processes.end()
    assert {"fleetwatt-1", "fleetwatt-api"} <= {row["application_name"] for row in rows}
    for text in [*shown, *processes.logs()]:
        assert not secrets.seen_in(text), text


def safe_fetch(port: int, token: str) -> str:
    try:
        return fetch(f"http://127.0.0.1:{port}/readyz", token)
    except OSError:
        return ""


@pytest.mark.parametrize("room", ["daemon", "api"])
def test_a_crash_does_not_bring_a_secret_to_light(tmp_path: Path, secrets: Secrets, room: str) -> None:
    """A bug that nobody caught: here a database driver that is not there."""
    crash = "import asyncpg.pool\ndef create_pool(*arguments, **named):\n    raise RuntimeError('a bug')\n"
    (tmp_path / "sitecustomize.py").write_text(crash + "asyncpg.create_pool = create_pool\n")
    processes = Processes(
        tmp_path,
        secrets,
        f"mqtt://fleetwatt:{quote(BROKER_PASSWORD, safe='')}@127.0.0.1:9",
        database_url("127.0.0.1:9/none"),
        LOG_FORMAT="console",
        PYTHONPATH=str(tmp_path),
    )
    process = {"daemon": processes.daemon, "api": processes.api}[room]
    process.start(lambda: "a bug" in process.log.read_text(encoding="utf-8"))
    assert process.wait(30) != 0
    text = process.log.read_text(encoding="utf-8")
    assert "Traceback" in text
    assert not secrets.seen_in(text), text


def test_migrating_does_not_bring_a_secret_to_light(keeper: str, secrets: Secrets) -> None:
    for url in (database_url(keeper, WRONG_PASSWORD), database_url("no-such-host.invalid/none")):
        done = subprocess.run(
            [sys.executable, "-m", "daemon", "migrate"],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": url, "LOG_LEVEL": "debug"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert "the schema was not migrated" in done.stderr
        assert not secrets.seen_in(done.stdout + done.stderr)


def test_the_spellings_are_found_where_they_are(secrets: Secrets) -> None:
    for secret in secrets.known:
        for text in (secret, quote(secret, safe=""), repr({"password": secret}), json.dumps([secret])):
            assert secrets.seen_in(f"before {text} after") == {secret}
    assert not secrets.seen_in("nothing")
