"""What the doctor says of a broker: nothing of one in order, and of a broken one just what is broken."""

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import aiomqtt
import pytest

from daemon.doctor import passage
from daemon.doctor.access import Account
from daemon.doctor.examination import Options
from daemon.doctor.limits import CONFIGURATION, QUEUE_TRIED, Tried, is_local, judge_queue, read_limit
from dev.network import Network
from dev.processes import free_port
from tests.certificates import Authority
from tests.doctor.conftest import StartHouse
from tests.doctor.house import PASSWORDS, SHIPPED, House, enter, settle, troubles

NOWHERE = Options(configuration=Path("/nonexistent"))


@pytest.fixture
async def settled(house: House) -> House:
    """In order, but that no daemon runs."""
    await settle(house)
    return house


@pytest.fixture
def network(settled: House) -> Iterator[Network]:
    with Network(f"mqtt://127.0.0.1:{settled.broker.port}") as network:
        yield network


def acl_for_the_doctor(folder: Path) -> str:
    """The shipped rules and those of docs/doctor.md."""
    page = (SHIPPED.parent / "docs" / "doctor.md").read_text()
    rules = page.partition("```\nuser fleetwatt-check\n")[2].partition("```")[0]
    assert rules, "docs/doctor.md lacks the rules"
    path = folder / "acl"
    path.write_text(f"{(SHIPPED / 'acl').read_text()}\nuser prober\n{rules}")
    return str(path)


async def test_the_shipped_broker_is_in_order(settled: House) -> None:
    found = await settled.check()
    assert troubles(found) == set()
    assert {name for name, finding in found.items() if finding.level == "skipped"} == {
        *("daemon.ready", "daemon.accounts", "daemon.spool", "passage"),
        *("broker.window", "broker.retained"),  # nobody is at hand who may publish and read
    }
    assert "lets the broker keep 5000000 messages" in found["broker.queue"].text


async def test_with_the_doctors_own_account_nothing_remains_unknown(start_house: StartHouse, tmp_path: Path) -> None:
    house = start_house({"acl_file": acl_for_the_doctor(tmp_path)})
    house.start_daemon()
    found = await house.check(Options(Account("prober", PASSWORDS["prober"]), configuration=Path("/nonexistent")))
    assert {finding.level for finding in found.values()} == {"ok"}
    assert "2000 messages were kept" in found["broker.queue"].text


@pytest.mark.parametrize(
    ("url", "name", "text", "remedy"),
    [
        ("mqtts://fleetwatt:wrong@localhost:{port}", "login", "refuses the account fleetwatt", "mosquitto_passwd"),
        ("mqtts://fleetwatt:daemon-secret@no.such.host.invalid", "name", "has no address", "getent hosts"),
        (
            "mqtts://fleetwatt:daemon-secret@localhost:{free}",
            "port",
            "refuses connections",
            "start mosquitto",
        ),
        ("mqtt://fleetwatt:daemon-secret@localhost:{port}", "login", "without an answer", "mqtts://"),
    ],
)
async def test_a_wrong_address(settled: House, url: str, name: str, text: str, remedy: str) -> None:
    authority = "" if url.startswith("mqtt:") else settled.environ["MQTT_CA_FILE"]
    address = url.format(port=settled.broker.port, free=free_port())
    found = await settled.check(MQTT_URL=address, MQTT_CA_FILE=authority)
    assert troubles(found) - {"broker.queue"} == {f"broker.{name}"}
    assert text in found[f"broker.{name}"].text
    assert remedy in (found[f"broker.{name}"].remedy or "")


async def test_a_broker_that_is_down(settled: House) -> None:
    settled.broker.process.stop()
    found = await settled.check()
    assert troubles(found) == {"broker.port"}
    assert found["broker.login"].text == "skipped because the broker cannot be reached"


async def test_a_network_that_swallows_everything(settled: House, network: Network) -> None:
    network.black_hole = True
    port = network.url.rpartition(":")[2]
    found = await settled.check(MQTT_URL=f"mqtts://fleetwatt:daemon-secret@localhost:{port}")
    assert troubles(found) == {"broker.tls"}
    assert "says nothing" in found["broker.tls"].text


async def test_a_certificate_of_an_unknown_authority(settled: House, tmp_path: Path) -> None:
    others = Authority(tmp_path / "others")
    found = await settled.check(MQTT_CA_FILE=str(others.ca))
    assert troubles(found) == {"broker.tls"}
    assert "no authority in MQTT_CA_FILE vouches" in found["broker.tls"].text
    assert "give MQTT_CA_FILE the ca.crt" in (found["broker.tls"].remedy or "")


def with_certificate(start_house: StartHouse, authority: Authority) -> House:
    return start_house(
        {"cafile": str(authority.ca), "certfile": str(authority.server), "keyfile": str(authority.server_key)},
        MQTT_CA_FILE=str(authority.ca),
    )


async def test_a_certificate_that_has_expired(start_house: StartHouse, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    authority.expire(authority.server)
    found = await with_certificate(start_house, authority).check()
    assert "has expired" in found["broker.tls"].text
    assert "Renewing certificates" in (found["broker.tls"].remedy or "")
    assert (found["broker.tls"].level, found["broker.mqtt5"].level) == ("failure", "skipped")


async def test_a_certificate_for_another_name(start_house: StartHouse, tmp_path: Path) -> None:
    found = await with_certificate(start_house, Authority(tmp_path / "authority", "broker.example.com")).check()
    assert "for another name" in found["broker.tls"].text
    assert "mosquitto/certificates ca NAME" in (found["broker.tls"].remedy or "")


async def test_a_certificate_that_expires_soon(
    start_house: StartHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = with_certificate(start_house, Authority(tmp_path / "authority"))
    await settle(house)
    monkeypatch.setattr("daemon.doctor.broker.DAYS_LEFT_MIN", 900)  # the script's are good for 825
    found = await house.check()
    assert troubles(found) == {"broker.tls"}
    assert found["broker.tls"].level == "warning"


async def test_a_broker_without_tls_where_tls_is_asked_for(open_house: StartHouse) -> None:
    house = open_house()
    found = await house.check(MQTT_URL=f"mqtts://127.0.0.1:{house.broker.port}")
    assert found["broker.tls"].level == "failure"
    assert found["broker.login"].text == "skipped because TLS fails"


async def answer(port: int, data: bytes) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(data)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", port)


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"\x20\x02\x00\x01", "the broker answers in MQTT 3"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "speaks no MQTT")],
)
async def test_what_speaks_no_mqtt_5(settled: House, data: bytes, text: str) -> None:
    """No Mosquitto can be told to refuse MQTT 5, so its old answer is given here."""
    port = free_port()
    async with await answer(port, data):
        found = await settled.check(MQTT_URL=f"mqtt://127.0.0.1:{port}", MQTT_CA_FILE="")
    assert troubles(found) == {"broker.mqtt5"}
    assert text in found["broker.mqtt5"].text


def dynamic_security(folder: Path) -> dict[str, str | None]:
    """Mosquitto's plugin, with an account that may do anything but subscribe."""
    plugin = next(Path("/usr/lib").glob("**/mosquitto_dynamic_security.so"), None)
    if plugin is None:  # Debian's package brings it, others do not
        pytest.skip("mosquitto_dynamic_security.so is not installed")
    salt = os.urandom(12)
    digest = hashlib.pbkdf2_hmac("sha512", PASSWORDS["fleetwatt"].encode(), salt, 101)
    client = {"username": "fleetwatt", "iterations": 101, "roles": []}
    client |= {"salt": base64.b64encode(salt).decode(), "password": base64.b64encode(digest).decode()}
    access = {"publishClientSend": False, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
    path = folder / "dynamic-security.json"
    path.write_text(json.dumps({"defaultACLAccess": access, "clients": [client], "groups": [], "roles": []}))
    return {"plugin": str(plugin), "plugin_opt_config_file": str(path), "password_file": None, "acl_file": None}


async def test_an_account_that_may_not_subscribe(start_house: StartHouse, tmp_path: Path) -> None:
    house = start_house(dynamic_security(tmp_path))
    found = await house.check()
    assert found["broker.login"].level == "ok"
    assert found["broker.subscribe"].level == "failure"
    assert "meters/# (reason code 135, 0x87) and vehicles/#" in found["broker.subscribe"].text
    assert "mosquitto/acl" in (found["broker.subscribe"].remedy or "")


async def test_a_queue_of_mosquittos_default_is_found_by_trying(open_house: StartHouse) -> None:
    house = open_house({"max_queued_messages": None, "max_queued_bytes": None})
    found = await house.check(NOWHERE)
    assert found["broker.queue"].level == "failure"
    assert "about 1000 messages" in found["broker.queue"].text
    assert "max_queued_messages 5000000" in (found["broker.queue"].remedy or "")


async def test_a_queue_of_mosquittos_default_is_found_in_the_configuration(start_house: StartHouse) -> None:
    house = start_house({"max_queued_messages": None})
    await settle(house)
    found = await house.check()
    assert troubles(found) == {"broker.queue"}
    assert "keep 1000 messages and drop the rest" in found["broker.queue"].text


async def test_a_queue_that_nobody_may_try_is_unknown_and_not_in_order(settled: House) -> None:
    found = await settled.check(NOWHERE)
    assert troubles(found) == {"broker.queue"}
    assert found["broker.queue"].level == "warning"
    assert "--probe-account" in (found["broker.queue"].remedy or "")


async def test_the_daemons_own_account_is_used_where_it_may_have_several_sessions(
    start_house: StartHouse,
) -> None:
    house = start_house({"use_username_as_clientid": "false", "acl_file": None, "max_queued_messages": None})
    await settle(house)
    found = await house.check(NOWHERE)
    assert troubles(found) == {"broker.queue"}
    assert "about 1000 messages" in found["broker.queue"].text
    probe, was_there = await enter(house)
    await probe.leave(forget=False)
    assert was_there


async def test_retained_messages_are_counted_and_stay(open_house: StartHouse) -> None:
    house = open_house()
    async with aiomqtt.Client("127.0.0.1", house.broker.port) as device:
        for number in range(3):
            await device.publish(f"meters/m{number}/reading", b"{}", qos=1, retain=True)
    for _ in range(2):
        found = await house.check()
        assert found["broker.retained"].level == "warning"
        assert found["broker.retained"].text.startswith("3 retained messages")
        assert "--remove-retained" in (found["broker.retained"].remedy or "")


async def test_a_broker_that_lets_anybody_in_beside_its_accounts(start_house: StartHouse) -> None:
    house = start_house({"allow_anonymous": "true", "use_username_as_clientid": "false"})
    await settle(house)
    found = await house.check()
    assert troubles(found) == {"broker.guests"}
    assert "allow_anonymous false" in (found["broker.guests"].remedy or "")


async def test_a_daemon_that_may_not_read_is_found_by_the_passage(
    start_house: StartHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mosquitto grants such a subscription, and never delivers anything to it."""
    monkeypatch.setattr(passage, "PASSAGE_TIMEOUT_S", 1.0)
    acl = tmp_path / "acl"
    acl.write_text((SHIPPED / "acl").read_text().replace("topic read", "# topic read"))
    house = start_house({"acl_file": str(acl)})
    house.start_daemon()
    configuration = house.broker.process.log.parent / "mosquitto.conf"
    options = Options(Account("meter-1", PASSWORDS["meter-1"]), configuration=configuration)
    found = await house.check(options)
    assert troubles(found) == {"passage"}
    assert "let the daemon's account read meters/#" in (found["passage"].remedy or "")


async def test_without_an_account_the_passage_says_what_to_give(house: House) -> None:
    house.start_daemon()
    found = await house.check()
    assert found["passage"].level == "skipped"
    assert "--probe-account" in found["passage"].text


@pytest.mark.parametrize(
    ("tried", "limit", "level"),
    [
        (None, None, "warning"),
        (None, 1000, "failure"),
        (None, 50_000, "warning"),
        (None, 5_000_000, "ok"),
        (None, 0, "ok"),
        (1001, 5_000_000, "failure"),
        (QUEUE_TRIED, None, "ok"),
        (QUEUE_TRIED, 50_000, "warning"),
        (QUEUE_TRIED, 1000, "ok"),
    ],
)
def test_what_was_measured_counts_more_than_what_is_written(tried: int | None, limit: int | None, level: str) -> None:
    assert judge_queue(Tried(queue=tried), Path(CONFIGURATION), limit).level == level


def test_the_limit_is_read_as_mosquitto_reads_it(tmp_path: Path) -> None:
    main, more = tmp_path / "mosquitto.conf", tmp_path / "conf.d"
    more.mkdir()
    main.write_text(f"# max_queued_messages 7\ninclude_dir {more}\n")
    assert read_limit(main, 1883) == 1000
    (more / "queue.conf").write_text("max_queued_messages 0\n")
    assert read_limit(main, 1883) == 0
    assert read_limit(main, 8883) is None  # another broker's
    assert read_limit(tmp_path / "none", 1883) is None
    assert read_limit(SHIPPED / "mosquitto.conf", 8883) == 5_000_000
    assert CONFIGURATION == "/etc/mosquitto/mosquitto.conf"


async def test_an_address_of_another_machine_is_told_from_one_of_this() -> None:
    assert await is_local("127.0.0.1")
    assert not await is_local("192.0.2.1")
