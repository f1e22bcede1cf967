"""The shipped Mosquitto configuration, rules and certificates, in a real broker; the devices are paho-mqtt clients."""

import os
import queue
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from dev.house import eventually
from dev.processes import Child, free_port
from tests.certificates import SCRIPT as CERTIFICATES
from tests.certificates import Authority

SHIPPED = Path(__file__).parent.parent / "mosquitto"
SBIN = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"
WAIT_S = 20
PASSWORDS = {"fleetwatt": "daemon-secret", "meter-1": "first-secret", "meter-2": "second-secret"}
NOT_AUTHORIZED = 0x87
NO_SUBSCRIBERS = 0x10


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def program(name: str) -> str:
    path = shutil.which(name, path=SBIN)
    assert path, f"{name} is not installed; deploy/install-package installs it"
    return path


def options_of(configuration: Path) -> list[tuple[str, str]]:
    lines = (line.strip() for line in configuration.read_text().splitlines())
    pairs = (line.partition(" ") for line in lines if line and not line.startswith("#"))
    return [(name, value) for name, _, value in pairs]


class Broker:
    """A Mosquitto with the shipped configuration; `changes` replaces or adds options."""

    def __init__(self, folder: Path, authority: Authority, passwords: Path, **changes: str) -> None:
        self.folder, self.ca = folder, authority.ca
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        replaced = {
            "listener": f"{self.port} 127.0.0.1",
            "cafile": str(authority.ca),
            "certfile": str(authority.server),
            "keyfile": str(authority.server_key),
            "password_file": str(passwords),
            "acl_file": str(SHIPPED / "acl"),
            "persistence_location": f"{folder}/",
        }
        if os.geteuid() == 0:  # otherwise it becomes the user mosquitto, who may not enter pytest's folders
            replaced["user"] = "root"
        options = dict(options_of(SHIPPED / "mosquitto.conf")) | replaced | changes
        (folder / "mosquitto.conf").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        self.start()

    def start(self) -> None:
        self.log = (self.folder / "log").open("ab")
        command = [program("mosquitto"), "-c", str(self.folder / "mosquitto.conf")]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        wait_until(self._listens)

    def _listens(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S).close()
        except ConnectionRefusedError:
            return False
        return True

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(WAIT_S)
        self.log.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)
        self.log.close()


class Device:
    """A connection of one account; what the broker answers is put into queues."""

    def __init__(self, broker: Broker, username: str | None, client_id: str | None = None, **connecting: Any) -> None:
        self.connects: queue.Queue[tuple[ReasonCode, bool]] = queue.Queue()
        self.disconnects: queue.Queue[int] = queue.Queue()
        self.subacks: queue.Queue[list[int]] = queue.Queue()
        self.pubacks: queue.Queue[int] = queue.Queue()
        self.messages: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id or username or "nobody", protocol=MQTTv5)
        self.client.tls_set(str(broker.ca), connecting.pop("certfile", None), connecting.pop("keyfile", None))
        password = connecting.pop("password", PASSWORDS.get(username or ""))
        if will := connecting.pop("will", None):
            self.client.will_set(will, b"the last will", qos=1)
        if username:
            self.client.username_pw_set(username, password)
        self._listen()
        self.client.connect("127.0.0.1", broker.port, **connecting)
        self.client.loop_start()
        self.reason, self.session_present = self._answer()

    def _answer(self) -> tuple[ReasonCode, bool]:
        """The broker's answer; an assertion fails where it hung up instead."""
        wait_until(lambda: not self.connects.empty() or not self.disconnects.empty())
        if self.connects.empty():
            self.close()
            raise AssertionError("no answer")
        return self.connects.get()

    def _listen(self) -> None:
        def on_connect(_: Client, __: object, flags: ConnectFlags, reason: ReasonCode, ___: Properties | None) -> None:
            self.connects.put((reason, flags.session_present))

        def on_disconnect(
            _: Client, __: object, ___: DisconnectFlags, reason: ReasonCode, ____: Properties | None
        ) -> None:
            self.disconnects.put(reason.value)

        def on_subscribe(_: Client, __: object, ___: int, reasons: list[ReasonCode], ____: Properties | None) -> None:
            self.subacks.put([reason.value for reason in reasons])

        def on_publish(_: Client, __: object, ___: int, reason: ReasonCode, ____: Properties) -> None:
            self.pubacks.put(reason.value)

        def on_message(_: Client, __: object, message: MQTTMessage) -> None:
            self.messages.put((message.topic, bytes(message.payload)))

        self.client.on_connect = on_connect
        self.client.on_disconnect = on_disconnect
        self.client.on_subscribe = on_subscribe
        self.client.on_publish = on_publish
        self.client.on_message = on_message

    def publish(self, topic: str, payload: bytes = b"{}", qos: int = 1, *, retain: bool = False) -> int:
        """Publish, wait for the acknowledgement and return its reason code (always 0 for QoS 0)."""
        self.client.publish(topic, payload, qos, retain)
        return self.pubacks.get(timeout=WAIT_S)

    def subscribe(self, *topics: str) -> list[int]:
        self.client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in topics])
        return self.subacks.get(timeout=WAIT_S)

    def receive(self) -> tuple[str, bytes]:
        return self.messages.get(timeout=WAIT_S)

    def vanish(self) -> None:
        """End the connection without a good-bye, for which the broker publishes the last will."""
        connection = self.client.socket()
        assert isinstance(connection, ssl.SSLSocket)
        connection.shutdown(socket.SHUT_RDWR)
        self.disconnects.get(timeout=WAIT_S)
        self.client.loop_stop()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture(scope="module")
def passwords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As docs/broker.md makes them: plain text turned into hashes."""
    path = tmp_path_factory.mktemp("passwords") / "passwords"
    path.write_text("".join(f"{name}:{password}\n" for name, password in PASSWORDS.items()))
    subprocess.run([program("mosquitto_passwd"), "-U", str(path)], check=True)
    assert "secret" not in path.read_text()
    return path


StartBroker = Callable[..., Broker]
Connect = Callable[..., Device]


@pytest.fixture
def start_broker(tmp_path: Path, authority: Authority, passwords: Path) -> Iterator[StartBroker]:
    brokers: list[Broker] = []

    def start(whose: Authority = authority, **changes: str) -> Broker:
        brokers.append(Broker(tmp_path, whose, passwords, **changes))
        return brokers[-1]

    yield start
    for broker in brokers:
        broker.kill()


@pytest.fixture
def broker(start_broker: StartBroker) -> Broker:
    return start_broker()


@pytest.fixture
def connect() -> Iterator[Connect]:
    devices: list[Device] = []

    def new(*arguments: Any, **keywords: Any) -> Device:
        devices.append(Device(*arguments, **keywords))
        return devices[-1]

    yield new
    for device in devices:
        device.close()


def session(expiry_s: int = 3600) -> dict[str, Any]:
    """How the daemon connects: to the session that it left, which outlives the connection."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it without types
    properties.SessionExpiryInterval = expiry_s
    return {"clean_start": False, "properties": properties}


def leave_a_session(connect: Connect, broker: Broker, **connecting: Any) -> None:
    """The daemon was there once, subscribed, and is away now."""
    daemon = connect(broker, "fleetwatt", **session(), **connecting)
    daemon.subscribe("meters/#", "vehicles/#")
    daemon.close()


CERTIFICATES_ONLY = {"require_certificate": "true", "use_identity_as_username": "true"}
"""What docs/broker.md shows for a listener where a certificate stands for name and password."""


def pair(authority: Authority, name: str) -> dict[str, str]:
    """A client's certificate and key, as paho takes them."""
    certificate, key = authority.client(name)
    return {"certfile": str(certificate), "keyfile": str(key)}


def test_every_option_stands_once() -> None:
    names = [name for name, _ in options_of(SHIPPED / "mosquitto.conf")]
    assert len(names) == len(set(names))


def test_a_device_publishes_its_own_readings_over_tls_and_the_daemon_receives_them(
    broker: Broker, connect: Connect
) -> None:
    daemon, device = connect(broker, "fleetwatt"), connect(broker, "meter-1")
    assert daemon.subscribe("meters/#", "vehicles/#") == [1, 1]
    for kind in ("meters", "vehicles"):
        assert device.publish(f"{kind}/meter-1/reading", b'{"soc":1}') == 0
        assert daemon.receive() == (f"{kind}/meter-1/reading", b'{"soc":1}')


def test_daemons_can_share_the_topics(broker: Broker, connect: Connect) -> None:
    daemon, device = connect(broker, "fleetwatt"), connect(broker, "meter-1")
    assert daemon.subscribe("$share/fleetwatt/meters/#", "$share/fleetwatt/vehicles/#") == [1, 1]
    assert device.publish("meters/meter-1/reading") == 0
    assert daemon.receive() == ("meters/meter-1/reading", b"{}")


OTHERS_TOPICS = [
    "meters/meter-2/reading",
    "vehicles/meter-2/reading",
    "meters/meter-1/other",
    "meters/meter-1/reading/more",
    "meters/meter-1",
    "meters//reading",
    "/meters/meter-1/reading",
    "METERS/meter-1/reading",
    "meters/fleetwatt/reading",
    "$SYS/broker/version",
    "$CONTROL/dynamic-security/v1",
    "$share/fleetwatt/meters/meter-2/reading",
    "x",
]


@pytest.mark.parametrize("topic", OTHERS_TOPICS)
def test_a_device_cannot_publish_anything_else(broker: Broker, connect: Connect, topic: str) -> None:
    assert connect(broker, "meter-1").publish(topic) == NOT_AUTHORIZED


@pytest.mark.parametrize("topic", OTHERS_TOPICS)
def test_a_device_leaves_no_retained_message_elsewhere(broker: Broker, connect: Connect, topic: str) -> None:
    device = connect(broker, "meter-1")
    assert device.publish(topic, retain=True) == NOT_AUTHORIZED
    assert device.publish("meters/meter-1/reading", b"own", retain=True) == NO_SUBSCRIBERS
    daemon = connect(broker, "fleetwatt")
    daemon.subscribe("meters/#", "vehicles/#")
    assert daemon.receive() == ("meters/meter-1/reading", b"own")
    assert device.publish("meters/meter-1/reading", b"the last") == 0
    assert daemon.receive() == ("meters/meter-1/reading", b"the last"), "nothing else was kept"


def test_a_devices_last_will_cannot_speak_for_another(broker: Broker, connect: Connect) -> None:
    daemon = connect(broker, "fleetwatt")
    daemon.subscribe("meters/#", "vehicles/#")
    for topic in ("meters/meter-2/reading", "vehicles/meter-2/reading", "meters/meter-1/reading"):
        connect(broker, "meter-1", will=topic).vanish()
    assert daemon.receive() == ("meters/meter-1/reading", b"the last will"), "Mosquitto asks for the right at the end"
    connect(broker, "meter-2").publish("meters/meter-2/reading", b"itself")
    assert daemon.receive() == ("meters/meter-2/reading", b"itself")


@pytest.mark.parametrize(
    "pattern",
    [
        "#",
        "meters/#",
        "+/+/reading",
        "meters/meter-1/reading",
        "meters/meter-2/reading",
        "vehicles/#",
        "$SYS/#",
        "$share/curious/meters/#",
        "$share/curious/#",
    ],
)
def test_a_device_reads_nothing(broker: Broker, connect: Connect, pattern: str) -> None:
    daemon, device = connect(broker, "fleetwatt"), connect(broker, "meter-1")
    daemon.subscribe("meters/#", "vehicles/#")
    device.publish("vehicles/meter-1/reading", b"kept", retain=True)
    curious = connect(broker, "meter-2")
    curious.subscribe(pattern)
    for number in range(4):
        device.publish("meters/meter-1/reading", b"%d" % number)
    received = [daemon.receive()[1] for _ in range(5)]  # so the broker is through with these messages
    curious.publish("meters/meter-2/reading")  # and whatever it sent before this answer has arrived
    assert received == [b"kept", b"0", b"1", b"2", b"3"]
    assert curious.messages.empty()


def test_a_device_that_joins_the_daemons_group_reads_nothing_and_takes_messages_away(
    broker: Broker, connect: Connect
) -> None:
    """Why the group's name is a secret; without a group there is no such hole. docs/broker.md has the remedy."""
    daemon, device, curious = (connect(broker, name) for name in ("fleetwatt", "meter-1", "meter-2"))
    for member in (daemon, curious):
        member.subscribe("$share/guessed/meters/#")
    for number in range(10):
        assert device.publish("meters/meter-1/reading", b"%d" % number) == 0
    curious.client.unsubscribe("$share/guessed/meters/#")
    curious.publish("meters/meter-2/reading", b"the last")
    received = []
    while (payload := daemon.receive()[1]) != b"the last":
        received.append(payload)
    assert curious.messages.empty()
    assert len(received) == 5, "each other one was lost"


@pytest.mark.parametrize("kind", ["meters", "vehicles"])
@pytest.mark.parametrize("name", ["meter-1", "fleetwatt"])
def test_the_daemon_publishes_nothing(broker: Broker, connect: Connect, kind: str, name: str) -> None:
    assert connect(broker, "fleetwatt").publish(f"{kind}/{name}/reading") == NOT_AUTHORIZED


@pytest.mark.parametrize(("username", "password"), [("meter-1", "wrong"), ("stranger", "first-secret"), (None, None)])
def test_nobody_enters_without_the_right_password(
    broker: Broker, connect: Connect, username: str | None, password: str | None
) -> None:
    assert connect(broker, username, password=password).reason.value == NOT_AUTHORIZED


def test_an_account_that_is_deleted_or_gets_another_password_is_thrown_out_at_the_next_reload(
    start_broker: StartBroker, connect: Connect, passwords: Path, tmp_path: Path
) -> None:
    accounts = Path(shutil.copy(passwords, tmp_path / "accounts"))
    broker = start_broker(password_file=str(accounts))
    daemon, stolen, changed = (connect(broker, name) for name in ("fleetwatt", "meter-1", "meter-2"))
    kept = [line for line in accounts.read_text().splitlines() if line.startswith("fleetwatt:")]
    other = tmp_path / "other"
    other.write_text("meter-2:another-secret\n")
    subprocess.run([program("mosquitto_passwd"), "-U", str(other)], check=True)
    accounts.write_text("\n".join([*kept, other.read_text()]))
    broker.process.send_signal(signal.SIGHUP)
    for device in (stolen, changed):
        assert device.disconnects.get(timeout=WAIT_S) > 0
        device.close()
    assert daemon.subscribe("meters/#") == [1]
    assert daemon.disconnects.empty()
    for name in ("meter-1", "meter-2"):
        assert connect(broker, name).reason.value == NOT_AUTHORIZED


def test_who_has_not_said_who_he_is_is_thrown_out(broker: Broker) -> None:
    publish = b"\x32\x1c\x00\x16meters/meter-1/reading\x00\x01{}"
    subscribe = b"\x82\x0d\x00\x01\x00\x00\x07meters/\x01"
    context = ssl.create_default_context(cafile=broker.ca)
    for packet in (publish, subscribe):
        with (
            socket.create_connection(("127.0.0.1", broker.port), timeout=WAIT_S) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            connection.sendall(packet)
            assert connection.recv(100) == b""


def test_a_device_with_the_daemons_client_id_does_not_take_its_session(broker: Broker, connect: Connect) -> None:
    leave_a_session(connect, broker)
    device = connect(broker, "meter-1", client_id="fleetwatt", clean_start=True)
    device.publish("meters/meter-1/reading")
    device.close()
    daemon = connect(broker, "fleetwatt", **session())
    assert daemon.session_present
    assert daemon.receive() == ("meters/meter-1/reading", b"{}")


def test_a_device_with_the_daemons_client_id_does_not_throw_the_daemon_out(broker: Broker, connect: Connect) -> None:
    daemon = connect(broker, "fleetwatt", **session())
    daemon.subscribe("meters/#")
    assert connect(broker, "meter-1", client_id="fleetwatt").publish("meters/meter-1/reading") == 0
    assert daemon.receive() == ("meters/meter-1/reading", b"{}")
    assert daemon.disconnects.empty()


def test_without_use_username_as_clientid_a_device_would_take_the_daemons_session(
    start_broker: StartBroker, connect: Connect
) -> None:
    broker = start_broker(use_username_as_clientid="false")
    leave_a_session(connect, broker)
    connect(broker, "meter-1", client_id="fleetwatt", clean_start=True).close()
    assert not connect(broker, "fleetwatt", **session()).session_present


def test_an_account_named_like_a_wildcard_speaks_for_nobody(
    start_broker: StartBroker, connect: Connect, tmp_path: Path
) -> None:
    accounts = tmp_path / "wildcards"
    accounts.write_text("+:first-secret\n#:second-secret\n")
    subprocess.run([program("mosquitto_passwd"), "-U", str(accounts)], check=True)
    broker = start_broker(password_file=str(accounts))
    for name, password in (("+", "first-secret"), ("#", "second-secret")):
        device = connect(broker, name, client_id="device", password=password)
        if device.reason.value != NOT_AUTHORIZED:
            assert device.publish("meters/meter-1/reading") == NOT_AUTHORIZED


def test_readings_wait_for_an_absent_daemon_beyond_mosquittos_own_limit_and_at_qos_0_too(
    broker: Broker, connect: Connect
) -> None:
    leave_a_session(connect, broker)
    device = connect(broker, "meter-1")
    for number in range(1500):
        device.client.publish("meters/meter-1/reading", b"%d" % number, qos=number % 2)
    assert [device.pubacks.get(timeout=WAIT_S) for _ in range(1500)] == [0] * 1500
    device.publish("meters/meter-1/reading", b"the last")  # QoS 0 has no acknowledgement: this one is behind them all
    daemon = connect(broker, "fleetwatt", **session())
    payloads = [daemon.receive()[1] for _ in range(1501)]
    assert sorted(payloads[:-1], key=int) == [b"%d" % number for number in range(1500)]


def test_a_killed_broker_still_has_the_queue_that_it_saved(start_broker: StartBroker, connect: Connect) -> None:
    broker = start_broker(autosave_interval="1")  # the shipped 10 seconds, shortened for the test alone
    leave_a_session(connect, broker)
    device = connect(broker, "meter-1")
    device.publish("meters/meter-1/reading", b"kept through the kill")
    device.close()
    saved = broker.folder / "mosquitto.db"
    wait_until(lambda: saved.exists() and b"kept through the kill" in saved.read_bytes())
    broker.kill()
    broker.start()
    daemon = connect(broker, "fleetwatt", **session())
    assert daemon.session_present
    assert daemon.receive() == ("meters/meter-1/reading", b"kept through the kill")


def test_a_message_that_the_daemon_must_reject_as_too_large_still_reaches_it(broker: Broker, connect: Connect) -> None:
    daemon, device = connect(broker, "fleetwatt"), connect(broker, "meter-1")
    daemon.subscribe("meters/#")
    payload = b"x" * (1024 * 1024 + 1)
    assert device.publish("meters/meter-1/reading", payload) == 0
    assert daemon.receive() == ("meters/meter-1/reading", payload)


def test_the_broker_disconnects_who_sends_a_packet_above_its_limit(broker: Broker, connect: Connect) -> None:
    device = connect(broker, "meter-1")
    device.client.publish("meters/meter-1/reading", b"x" * (2 * 1024 * 1024), qos=1)
    assert device.disconnects.get(timeout=WAIT_S) > 0
    wait_until(lambda: "oversize packet" in (broker.folder / "log").read_text())


def test_a_certificate_can_stand_for_the_password_even_where_the_id_has_a_colon(
    start_broker: StartBroker, connect: Connect, authority: Authority
) -> None:
    broker = start_broker(**CERTIFICATES_ONLY)
    device = connect(broker, None, **pair(authority, "aa:bb"))
    assert device.publish("meters/aa:bb/reading") == NO_SUBSCRIBERS  # taken, only there was no daemon yet
    assert device.publish("meters/meter-1/reading") == NOT_AUTHORIZED


def test_a_certificate_speaks_for_its_own_name_whatever_else_is_said(
    start_broker: StartBroker, connect: Connect, authority: Authority
) -> None:
    broker = start_broker(**CERTIFICATES_ONLY)
    device = connect(broker, "meter-2", client_id="fleetwatt", **pair(authority, "meter-1"))
    assert device.publish("meters/meter-2/reading") == NOT_AUTHORIZED
    assert device.publish("meters/meter-1/reading") == NO_SUBSCRIBERS


def test_a_certificate_of_another_authority_or_none_does_not_get_in(
    start_broker: StartBroker, connect: Connect, strangers: Authority
) -> None:
    broker = start_broker(**CERTIFICATES_ONLY)
    for certificate in ({}, pair(strangers, "meter-1")):
        with pytest.raises(AssertionError, match="no answer"):
            connect(broker, "meter-1", **certificate)


def test_certificates_are_never_overwritten_and_keys_are_private(tmp_path: Path) -> None:
    command = [CERTIFICATES, str(tmp_path), "localhost"]
    subprocess.run(command, check=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["ca.crt", "ca.key", "server.crt", "server.key"]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "server.crt": 0o644, "server.key": 0o600}
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, "exists already" in again.stderr) == (1, True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_server_certificate_is_renewed_with_the_same_authority(tmp_path: Path) -> None:
    command = [CERTIFICATES, str(tmp_path), "localhost"]
    subprocess.run(command, check=True)
    authority = (tmp_path / "ca.crt").read_bytes()
    for name in ("server.crt", "server.key"):
        (tmp_path / name).unlink()
    subprocess.run(command, check=True)
    assert (tmp_path / "ca.crt").read_bytes() == authority
    subprocess.run(["openssl", "verify", "-CAfile", str(tmp_path / "ca.crt"), str(tmp_path / "server.crt")], check=True)


class Daemon:
    """`python -m daemon` against a broker with the shipped configuration, over TLS."""

    def __init__(self, folder: Path, broker: Broker, database_url: str, account: str, **settings: str) -> None:
        given = {"DATABASE_URL": database_url, "METRICS_PORT": str(free_port()), "MQTT_CA_FILE": str(broker.ca)}
        environment = {**os.environ, **given, "MQTT_URL": f"mqtts://{account}@localhost:{broker.port}", **settings}
        command = [sys.executable, "-m", "daemon"]
        self.process = Child("daemon", command, folder, env=lambda: environment, cwd=SHIPPED.parent)

    def says(self, text: str) -> bool:
        return text in self.process.log.read_text(encoding="utf-8")


READING = b'{"kwhConsumedAc":0.25,"voltage":230}'


async def stored(database: asyncpg.Connection) -> bool:
    return bool(await database.fetchval("SELECT count(*) FROM meter_status WHERE kwh_consumed_ac = 0.25"))


async def test_the_daemon_itself_stores_over_tls_what_a_device_publishes(
    broker: Broker, connect: Connect, tmp_path: Path, database_url: str, database: asyncpg.Connection
) -> None:
    daemon = Daemon(tmp_path, broker, database_url, f"fleetwatt:{PASSWORDS['fleetwatt']}")
    daemon.process.start(lambda: daemon.says("subscribed"))
    device = connect(broker, "meter-1")
    assert device.publish("meters/meter-1/reading", READING) == 0
    await eventually(lambda: stored(database))
    assert daemon.process.stop() == 0
    assert not daemon.says(PASSWORDS["fleetwatt"])


def test_the_daemon_says_that_its_password_is_wrong(broker: Broker, tmp_path: Path, database_url: str) -> None:
    daemon = Daemon(tmp_path, broker, database_url, "fleetwatt:wrong")
    daemon.process.start(lambda: daemon.says("broker away, trying again"))
    assert daemon.says("the broker refused the connection: NOT_AUTHORIZED"), daemon.process.log_tail()
    assert daemon.process.stop() == 0


NO_AUTHORITY = "no authority in MQTT_CA_FILE vouches for the certificate of the broker"
EXPIRED = "the certificate of the broker has expired: renew it there"
OTHER_NAME = "the certificate of the broker is for another name than the host in MQTT_URL"


@pytest.mark.parametrize(
    ("name", "is_expired", "is_known", "said"),
    [
        ("localhost", False, False, NO_AUTHORITY),
        ("localhost", True, True, EXPIRED),
        ("other.example", False, True, OTHER_NAME),
    ],
)
async def test_the_daemon_waits_until_the_broker_has_a_good_certificate_and_then_loses_nothing(
    tmp_path: Path,
    start_broker: StartBroker,
    connect: Connect,
    database_url: str,
    database: asyncpg.Connection,
    name: str,
    is_expired: bool,
    is_known: bool,
    said: str,
) -> None:
    authority = Authority(tmp_path / "authority")
    broker = start_broker(authority)
    leave_a_session(connect, broker)
    device = connect(broker, "meter-1")
    assert device.publish("meters/meter-1/reading", READING) == 0
    device.close()
    broker.stop()
    authority.rename_server(name)
    if is_expired:
        authority.expire(authority.server)
    trusted = authority.ca if is_known else Authority(tmp_path / "strangers").ca
    broker.start()
    given = Path(shutil.copy(trusted, tmp_path / "trusted.crt"))
    daemon = Daemon(tmp_path, broker, database_url, f"fleetwatt:{PASSWORDS['fleetwatt']}", MQTT_CA_FILE=str(given))
    daemon.process.start(lambda: daemon.says(said))
    assert await database.fetchval("SELECT count(*) FROM meter_status") == 0
    authority.renew_server()
    broker.process.send_signal(signal.SIGHUP)  # what `systemctl reload mosquitto` sends
    if not is_known:  # the daemon reads its own files once, at its start
        shutil.copy(authority.ca, given)
        daemon.process.stop()
        daemon.process.start(lambda: daemon.says("the session is still there"))
    await eventually(lambda: stored(database))
    assert daemon.process.stop() == 0


@pytest.mark.parametrize(
    ("whose", "said"),
    [
        (None, "the broker wants a client certificate: set MQTT_CERT_FILE and MQTT_KEY_FILE"),
        ("strangers", "the broker does not know the authority of our certificate: look at MQTT_CERT_FILE"),
        ("expired", "our certificate has expired: renew MQTT_CERT_FILE and MQTT_KEY_FILE"),
    ],
)
async def test_the_daemon_gets_in_with_its_certificate_and_with_no_other(
    tmp_path: Path,
    start_broker: StartBroker,
    connect: Connect,
    database_url: str,
    database: asyncpg.Connection,
    strangers: Authority,
    whose: str | None,
    said: str,
) -> None:
    authority = Authority(tmp_path / "authority")
    broker = start_broker(authority, **CERTIFICATES_ONLY)
    leave_a_session(connect, broker, **pair(authority, "fleetwatt"))
    assert connect(broker, "meter-1", **pair(authority, "meter-1")).publish("meters/meter-1/reading", READING) == 0
    certificate, key = (strangers if whose == "strangers" else authority).client("fleetwatt")
    if whose == "expired":
        authority.expire(certificate)
    files = {"MQTT_CERT_FILE": str(certificate), "MQTT_KEY_FILE": str(key)} if whose else {}
    refused = Daemon(tmp_path, broker, database_url, "nobody", **files)
    refused.process.start(lambda: refused.says(said))
    assert refused.process.stop() == 0
    assert await database.fetchval("SELECT count(*) FROM meter_status") == 0

    for path in authority.client("fleetwatt"):
        path.unlink()
    certificate, key = authority.client("fleetwatt")
    files = {"MQTT_CERT_FILE": str(certificate), "MQTT_KEY_FILE": str(key)}
    daemon = Daemon(tmp_path, broker, database_url, "nobody", **files)
    daemon.process.start(lambda: daemon.says("the session is still there"))
    await eventually(lambda: stored(database))
    assert daemon.process.stop() == 0
