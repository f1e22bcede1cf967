"""What SECURITY.md says: the tests it names exist, roles have the rights they need, names cannot fool anybody."""

import asyncio
import http.client
import json
import os
import re
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from dev.broker import PrivateBroker
from dev.house import ROOT, House
from dev.postgres import PrivatePostgres
from dev.publisher import Publisher
from tests.api.server import sidecar

PAGE = ROOT / "SECURITY.md"
READING = b'{"kwhConsumedAc":0.25,"voltage":230}'


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8"))
    defined = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 20
    assert [name for name in named if not re.search(rf"^(async )?def {name}\(", defined, re.MULTILINE)] == []


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


# The rights of daemon and sidecar.


def rights() -> str:
    """The statements of SECURITY.md that make the roles."""
    (found,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def own_server() -> Iterator[PrivatePostgres]:
    """A server whose roles are this file's alone."""
    with tempfile.TemporaryDirectory(prefix="fleetwatt-") as folder:
        server = PrivatePostgres(Path(folder), {"fsync": "off", "shared_buffers": "64MB"})
        server.start()
        server.create_database("fleetwatt")
        try:
            asyncio.run(prepare(server.url("postgres"), server.url("fleetwatt")))
            yield server
        finally:
            server.process.stop()


async def prepare(administrator_url: str, database_url: str) -> None:
    """As the page says: an owner who migrates, then the two roles."""
    connection = await asyncpg.connect(administrator_url)
    await connection.execute("CREATE ROLE fleetwatt LOGIN PASSWORD 'owner'")
    await connection.execute("ALTER DATABASE fleetwatt OWNER TO fleetwatt")
    await connection.close()
    migrating = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "daemon", "migrate"),
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": as_role(database_url, "fleetwatt", "owner")},
    )
    assert await migrating.wait() == 0
    connection = await asyncpg.connect(database_url)
    await connection.execute(rights())
    await connection.close()


def as_role(url: str, role: str, password: str) -> str:
    return f"postgresql://{role}:{password}@{url.rpartition('@')[2]}"


@pytest.fixture
def daemon_url(own_server: PrivatePostgres) -> str:
    return as_role(own_server.url("fleetwatt"), "fleetwatt_daemon", "CHANGE-ME")


@pytest.fixture
def api_url(own_server: PrivatePostgres) -> str:
    return as_role(own_server.url("fleetwatt"), "fleetwatt_api", "CHANGE-ME")


async def test_the_daemons_role_is_enough_for_the_daemon(
    tmp_path: Path, broker: PrivateBroker, own_server: PrivatePostgres, daemon_url: str
) -> None:
    house = House(tmp_path, broker, daemon_url, RETENTION_DAYS="0", REJECTION_RETENTION_DAYS="1")
    house.start()
    late = {"kwhConsumedAc": 1, "voltage": 230, "timestamp": (datetime.now(UTC) - timedelta(days=30)).isoformat()}
    vehicle = b'{"soc":50,"kwhDeliveredDc":0.1,"batteryTemp":20}'
    readings = [("meters/m-1/reading", READING), ("meters/m-1/reading", json.dumps(late).encode())]
    readings += [("vehicles/v-1/reading", vehicle), ("vehicles/v-1/reading", b"{")]
    publisher = Publisher(broker.port, "devices")
    await publisher.publish(readings)
    await house.settled(4)
    await publisher.publish(readings[1:2] * 2)
    books = await house.settled(6)
    assert house.daemon.stop() == 0
    log = house.daemon.log.read_text(encoding="utf-8")
    assert (books.stored, books.duplicate) == ({"meter": 2, "vehicle": 1}, 2)
    assert books.rejected == {"malformed_json": 1}
    assert "permission denied" not in log
    assert "must be owner" not in log
    await keep_a_good_one(daemon_url, "m-8")
    for command in (["list"], ["replay"], ["replay", "--yes"]):
        environment = {**os.environ, "DATABASE_URL": daemon_url, "MQTT_URL": broker.url}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "daemon", "rejections", *command), cwd=ROOT, env=environment
        )
        assert await process.wait() == 0
    assert await is_stored(daemon_url, "m-8")


async def keep_a_good_one(url: str, meter_id: str) -> None:
    """A rejection that passes when it is tried again, as after a change of the rules."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "INSERT INTO rejection (received_at, topic, reason, detail, payload) VALUES (now(), $1, 'clock_ahead', '', $2)",
        *(f"meters/{meter_id}/reading", READING),
    )
    await connection.close()


async def is_stored(url: str, meter_id: str) -> bool:
    connection = await asyncpg.connect(url)
    found = await connection.fetchval("SELECT count(*) FROM meter_status WHERE meter_id = $1", meter_id)
    left = await connection.fetchval("SELECT count(*) FROM rejection WHERE topic LIKE $1", f"%/{meter_id}/%")
    await connection.close()
    return bool(found == 1 and left == 0)


async def test_a_role_that_may_not_drop_partitions_says_so_and_goes_on_storing(
    tmp_path: Path, broker: PrivateBroker, own_server: PrivatePostgres, daemon_url: str
) -> None:
    owner = await asyncpg.connect(own_server.url("fleetwatt"))
    await owner.execute("SELECT ensure_day('meter_reading', '2020-01-01')")
    await owner.close()
    house = House(tmp_path, broker, daemon_url, RETENTION_DAYS="10")
    house.start()
    await Publisher(broker.port, "devices").publish([("meters/m-7/reading", READING)])
    books = await house.settled(1)
    assert house.daemon.stop() == 0
    assert books.stored == {"meter": 1}
    assert "must be owner of table meter_reading_20200101" in house.daemon.log.read_text(encoding="utf-8")


def ask(url: str, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status in (200, 201)
        return json.loads(answer.read() or b"null")


def test_the_sidecars_role_is_enough_for_the_sidecar(tmp_path: Path, api_url: str) -> None:
    asyncio.run(keep_a_good_one(api_url, "m-9"))
    old = (datetime.now(UTC) - timedelta(days=20)).isoformat()
    with sidecar(tmp_path, api_url) as running:
        url = running.url
        readings = [
            {"meterId": "m-2", "kwhConsumedAc": 1, "voltage": 230},
            {"meterId": "m-2", "kwhConsumedAc": 1, "voltage": 230, "timestamp": old},
            {"vehicleId": "v-2", "soc": 50, "kwhDeliveredDc": 0.1, "batteryTemp": 20},
            {"vehicleId": "v-2", "soc": 500, "kwhDeliveredDc": 0.1, "batteryTemp": 20},
        ]
        report = ask(url, "POST", "/v1/ingest", readings)
        assert (report["stored"], report["rejected"]) == (3, 1)
        ask(url, "POST", "/v1/links", {"vehicleId": "v-2", "meterId": "m-2"})
        link = ask(url, "POST", "/v1/links", {"vehicleId": "v-3", "meterId": "m-2"})["link"]
        ask(url, "PUT", "/v1/links/v-3", {"corrects": link["validFrom"], "meterId": "m-3", "validFrom": old})
        ask(url, "PUT", "/v1/devices/meter/m-2", {"energyMode": "interval"})
        ask(url, "DELETE", "/v1/links/v-3")
        for path in ("/v1/links", "/v1/meters", "/v1/vehicles/v-2", "/v1/meters/m-2/readings", "/v1/rejections"):
            ask(url, "GET", path)
        for path in ("/v1/analytics/performance/v-2", "/v1/analytics/fleet"):
            ask(url, "GET", path)
        ask(url, "GET", "/v1/meters/m-2/completeness")
        for is_dry in (True, False):
            ask(url, "POST", "/v1/rejections/replay", {"dryRun": is_dry})
    assert asyncio.run(is_stored(api_url, "m-9"))


FORBIDDEN_TO_BOTH = (
    "DELETE FROM meter_reading",
    "UPDATE vehicle_reading SET soc = 0",
    "TRUNCATE meter_reading",
    "DROP TABLE meter_status",
    "INSERT INTO schema_migration VALUES (99, 'x', 'x')",
    "CREATE TABLE mine (id int)",
    "CREATE ROLE mine",
    "COPY meter_reading TO PROGRAM 'cat'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT ensure_day('pg_authid', '2020-01-01')",
    "SELECT ensure_day('schema_migration', '2020-01-01')",
)
FORBIDDEN_TO_THE_DAEMON = ("DELETE FROM vehicle_meter_link", "INSERT INTO device VALUES ('m', 'meter', 'interval')")


@pytest.mark.parametrize("role", ["daemon", "api"])
async def test_a_role_can_do_nothing_that_it_does_not_need(role: str, daemon_url: str, api_url: str) -> None:
    connection = await asyncpg.connect(daemon_url if role == "daemon" else api_url)
    for statement in FORBIDDEN_TO_BOTH + (FORBIDDEN_TO_THE_DAEMON if role == "daemon" else ()):
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.WrongObjectTypeError)):
            await connection.execute(statement)
    await connection.close()


# Who may ask the sidecar where nobody needs a token.


def status_under(port: int, *hosts: str, path: str = "/v1/meters") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("GET", path, skip_host=True)
    for host in hosts:
        connection.putheader("Host", host)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_without_tokens_a_page_whose_name_leads_here_is_refused(tmp_path: Path, database_url: str) -> None:
    with sidecar(tmp_path, database_url) as running:
        for host in ("localhost", f"localhost:{running.port}", "LOCALHOST", f"127.0.0.1:{running.port}", "[::1]:80"):
            assert status_under(running.port, host) == 200
        for host in ("evil.example", f"evil.example:{running.port}", "localhost.evil.example", "127.0.0.1.evil", ""):
            assert status_under(running.port, host) == 421
        assert status_under(running.port, "evil.example", path="/metrics") == 421
        assert status_under(running.port, "evil.example", path="/nowhere") == 421
        assert status_under(running.port, "localhost", "evil.example") in (400, 421)


def test_with_tokens_any_name_will_do(tmp_path: Path, database_url: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"sha256:{'0' * 64} read somebody\n")
    with sidecar(tmp_path, database_url, API_TOKENS_FILE=str(tokens)) as running:
        assert status_under(running.port, "dash.example") == 401


# Names that devices and clients choose.


HOSTILE = "meters/m\n2026-01-01T00:00:00Z [error] forged\x1b[2J\u202e/reading"


async def test_a_hostile_topic_and_payload_make_no_lines_of_their_own_for_who_looks_at_rejections(
    database: asyncpg.Connection, database_url: str
) -> None:
    await database.execute(
        "INSERT INTO rejection (received_at, topic, reason, detail, payload) VALUES (now(), $1, 'bad_topic', $1, $2)",
        *(HOSTILE, HOSTILE.encode()),
    )
    number = str(await database.fetchval("SELECT id FROM rejection"))
    environment = {**os.environ, "DATABASE_URL": database_url, "MQTT_URL": "mqtt://127.0.0.1"}
    for command in (["list"], ["show", number]):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "daemon", "rejections", *command),
            cwd=ROOT,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        printed = (await process.communicate())[0].decode()
        assert process.returncode == 0
        assert "forged" in printed
        assert not {"\x1b", "\u202e"} & set(printed)
        assert not re.search(r"^2026-01-01T00:00:00Z", printed.partition("payload  ")[0], re.MULTILINE)


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_hostile_path_makes_no_line_of_its_own_in_the_log(tmp_path: Path, database_url: str, log_format: str) -> None:
    with sidecar(tmp_path, database_url, LOG_FORMAT=log_format) as running:
        assert (
            status_under(running.port, "localhost", path="/a%0A2026-01-01T00:00:00Z%20forged%1b%5B2J%E2%80%AE") == 404
        )
        assert status_under(running.port, "localhost", path="/v1/meters/m%0Aforged%1b%5B2J") in (404, 422)
    log = running.process.log.read_text(encoding="utf-8")
    assert "forged" in log
    assert "\x1b" not in log
    assert "\u202e" not in log
    assert not re.search(r"^2026-01-01T00:00:00Z|^forged", log, re.MULTILINE)
