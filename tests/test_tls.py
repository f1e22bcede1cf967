"""TLS and mutual TLS to the database, for daemon and sidecar. That to the broker is in test_mosquitto.py."""

import asyncio
import os
import shutil
import ssl
import sys
import urllib.request
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from dev.broker import PrivateBroker
from dev.house import ROOT, eventually
from dev.processes import Child, free_port
from dev.publisher import Publisher
from sql.errors import Verdict, judge
from sql.pool import ConnectError, lease, open_pool
from sql.tls import BROKER, DATABASE, explain, in_words
from tests.certificates import Authority
from tests.tls_postgres import TlsFront, has_system_postgres, system_postgres

READING = b'{"kwhConsumedAc":0.25,"voltage":230}'


@pytest.fixture
async def front(database_url: str, authority: Authority) -> AsyncIterator[TlsFront]:
    async with TlsFront(database_url, authority) as front:
        yield front


@pytest.fixture
async def strict_front(database_url: str, authority: Authority) -> AsyncIterator[TlsFront]:
    """Lets in who has a certificate."""
    async with TlsFront(database_url, authority, require_certificate=True) as front:
        yield front


def verified(url: str, authority: Authority, certificate: tuple[Path, Path] | None = None) -> str:
    url += f"?sslmode=verify-full&sslrootcert={authority.ca}"
    return url if certificate is None else f"{url}&sslcert={certificate[0]}&sslkey={certificate[1]}"


async def answer(url: str) -> int:
    async with open_pool(url, "test", 1) as pool, lease(pool) as connection:
        return int(await connection.fetchval("SELECT 1"))


async def refusal(url: str) -> str:
    with pytest.raises(ConnectError) as raised:
        await answer(url)
    assert judge(raised.value) is Verdict.PASSES, "it may be mended while readings wait"
    return str(raised.value)


async def test_the_databases_certificate_is_verified(front: TlsFront, authority: Authority) -> None:
    assert await answer(verified(front.url, authority)) == 1
    assert await answer(verified(front.url.replace("@localhost:", "@127.0.0.1:"), authority)) == 1


async def test_a_database_that_our_authority_does_not_know_is_refused(front: TlsFront, strangers: Authority) -> None:
    text = await refusal(verified(front.url, strangers))
    assert text.startswith("no authority in sslrootcert in DATABASE_URL vouches for the certificate of the database")


async def test_an_expired_certificate_of_the_database_is_refused_until_it_is_renewed(
    database_url: str, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "authority")
    authority.expire(authority.server)
    async with TlsFront(database_url, authority) as front:
        assert (await refusal(verified(front.url, authority))).startswith(
            "the certificate of the database has expired: renew it there"
        )
        authority.renew_server()
        assert await answer(verified(front.url, authority)) == 1


async def test_a_certificate_for_another_name_is_refused(database_url: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority", "other.example")
    async with TlsFront(database_url, authority) as front:
        text = await refusal(verified(front.url, authority))
        assert text.startswith("the certificate of the database is for another name than the host in DATABASE_URL")
        text = await refusal(verified(front.url.replace("@localhost:", "@127.0.0.1:"), authority))
        assert text.startswith("the certificate of the database is for another address than the host in DATABASE_URL")


async def test_a_database_without_tls_is_refused_where_tls_is_asked_for(database_url: str) -> None:
    with pytest.raises(OSError, match="rejected SSL upgrade"):
        await answer(f"{database_url}?sslmode=require")


async def test_our_certificate_lets_us_in(strict_front: TlsFront, authority: Authority) -> None:
    assert await answer(verified(strict_front.url, authority, authority.client("fleetwatt"))) == 1


async def test_a_certificate_of_others_does_not_let_us_in(
    strict_front: TlsFront, authority: Authority, strangers: Authority
) -> None:
    text = await refusal(verified(strict_front.url, authority, strangers.client("fleetwatt")))
    assert "sslcert and sslkey in DATABASE_URL" in text


async def test_no_certificate_does_not_let_us_in(strict_front: TlsFront, authority: Authority) -> None:
    assert "sslcert and sslkey in DATABASE_URL" in await refusal(verified(strict_front.url, authority))


async def test_a_certificate_with_anothers_key_and_files_that_are_missing_name_the_parameters(
    strict_front: TlsFront, authority: Authority, strangers: Authority
) -> None:
    mixed = (authority.client("fleetwatt")[0], strangers.client("fleetwatt")[1])
    text = await refusal(verified(strict_front.url, authority, mixed))
    assert "look at sslcert and sslkey in DATABASE_URL" in text
    text = await refusal(f"{strict_front.url}?sslmode=verify-full&sslrootcert=/nowhere")
    assert "look at sslrootcert" in text
    text = await refusal(f"{strict_front.url}?sslmode=verify-full&sslrootcert={authority.server_key}")
    assert "look at sslrootcert in DATABASE_URL" in text


# The private server is built without TLS. The other tests put TLS in front of it, which will not do for this one.
@pytest.mark.skipif(not has_system_postgres(), reason="the system has no PostgreSQL with TLS of its own")
async def test_a_role_can_get_in_by_its_certificate_alone(authority: Authority, strangers: Authority) -> None:
    own, expired = authority.client("fleetwatt"), authority.client("expired")
    authority.expire(expired[0])
    with system_postgres(authority, "fleetwatt") as server:
        connection = await asyncpg.connect(server.url("postgres"))
        await connection.execute("CREATE ROLE fleetwatt LOGIN")
        await connection.close()
        url = f"postgresql://fleetwatt@localhost:{server.port}/postgres"
        assert await answer(verified(url, authority, own)) == 1
        assert "no authority" in await refusal(verified(url, strangers, own))
        for unknown in (strangers.client("fleetwatt"), expired):  # the server's alert may be lost with the connection
            assert "sslcert and sslkey in DATABASE_URL" in await refusal(verified(url, authority, unknown))
        for stranger in (None, authority.client("meter-1")):
            with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError) as raised:
                await answer(verified(url, authority, stranger))
            assert judge(raised.value) is Verdict.OURS


async def test_daemon_and_sidecar_wait_for_the_right_authority_and_lose_nothing(
    strict_front: TlsFront,
    authority: Authority,
    strangers: Authority,
    broker: PrivateBroker,
    database: asyncpg.Connection,
    tmp_path: Path,
) -> None:
    trusted = Path(shutil.copy(strangers.ca, tmp_path / "trusted.crt"))
    certificate, key = authority.client("fleetwatt")
    url = f"{strict_front.url}?sslmode=verify-full&sslrootcert={trusted}&sslcert={certificate}&sslkey={key}"
    ports = {"METRICS_PORT": str(free_port()), "API_PORT": str(free_port())}
    environment = {**os.environ, **ports, "DATABASE_URL": url, "MQTT_URL": broker.url}
    processes = [
        Child(name, [sys.executable, "-m", name], tmp_path, env=lambda: environment, cwd=ROOT)
        for name in ("daemon", "api")
    ]

    def refused(process: Child) -> bool:
        return "no authority in sslrootcert in DATABASE_URL vouches" in process.log.read_text(encoding="utf-8")

    async def ready() -> bool:
        return all([await asyncio.to_thread(is_ready, port) for port in ports.values()])

    async def stored() -> bool:
        return bool(await database.fetchval("SELECT count(*) FROM meter_status WHERE kwh_consumed_ac = 0.25"))

    for process in processes:
        await asyncio.to_thread(process.start, partial(refused, process))
    await eventually_subscribed(processes[0])
    await Publisher(broker.port, "meter-1").publish([("meters/meter-1/reading", READING)])
    assert not await ready()
    assert not await stored()
    shutil.copy(authority.ca, trusted)
    await eventually(stored)
    await eventually(ready)
    for process in processes:
        assert await asyncio.to_thread(process.stop) == 0


def is_ready(port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


async def eventually_subscribed(daemon: Child) -> None:
    async def subscribed() -> bool:
        return "subscribed  " in daemon.log.read_text(encoding="utf-8")

    await eventually(subscribed)


def test_an_error_that_is_not_of_tls_keeps_its_own_words() -> None:
    assert in_words(ConnectionRefusedError("refused"), BROKER) == "refused"
    assert in_words(TimeoutError(), BROKER) == "TimeoutError"
    assert explain(OSError(), DATABASE) is None


def test_a_tls_error_that_nobody_knows_is_still_one_of_tls() -> None:
    assert in_words(ssl.SSLError(1, "news"), BROKER).startswith("the connection to the broker could not be secured (")
