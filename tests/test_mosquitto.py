"""The shipped Mosquitto configuration, rules and certificates, in a real broker; the devices are paho-mqtt clients."""

import os
import queue
import shutil
import socket
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

from dev.processes import Child, free_port
from tests.flow.house import eventually

SHIPPED = Path(__file__).parent.parent / "mosquitto"
CERTIFICATES = str(SHIPPED / "certificates")
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
    assert path, f"{name} is not installed; deploy/install-broker installs it"
    return path


def options_of(configuration: Path) -> list[tuple[str, str]]:
    lines = (line.strip() for line in configuration.read_text().splitlines())
    pairs = (line.partition(" ") for line in lines if line and not line.startswith("#"))
    return [(name, value) for name, _, value in pairs]


class Broker:
    """A Mosquitto with the shipped configuration; `changes` replaces or adds options."""

    def __init__(self, folder: Path, certificates: Path, passwords: Path, **changes: str) -> None:
        self.folder, self.ca = folder, certificates / "ca.crt"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        replaced = {
            "listener": f"{self.port} 127.0.0.1",
            "cafile": str(certificates / "ca.crt"),
            "certfile": str(certificates / "server.crt"),
            "keyfile": str(certificates / "server.key"),
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
        if username:
            self.client.username_pw_set(username, password)
        self._listen()
        self.client.connect("127.0.0.1", broker.port, **connecting)
        self.client.loop_start()
        self.reason, self.session_present = self.connects.get(timeout=WAIT_S)

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

    def publish(self, topic: str, payload: bytes = b"{}", qos: int = 1) -> int:
        """Publish, wait for the acknowledgement and return its reason code (always 0 for QoS 0)."""
        self.client.publish(topic, payload, qos)
        return self.pubacks.get(timeout=WAIT_S)

    def subscribe(self, *topics: str) -> list[int]:
        self.client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in topics])
        return self.subacks.get(timeout=WAIT_S)

    def receive(self) -> tuple[str, bytes]:
        return self.messages.get(timeout=WAIT_S)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    subprocess.run([CERTIFICATES, str(folder), "localhost", "127.0.0.1"], check=True)
    return folder


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
def start_broker(tmp_path: Path, certificates: Path, passwords: Path) -> Iterator[StartBroker]:
    brokers: list[Broker] = []

    def start(**changes: str) -> Broker:
        brokers.append(Broker(tmp_path, certificates, passwords, **changes))
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


def leave_a_session(connect: Connect, broker: Broker) -> None:
    """The daemon was there once, subscribed, and is away now."""
    daemon = connect(broker, "fleetwatt", **session())
    daemon.subscribe("meters/#", "vehicles/#")
    daemon.close()


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


@pytest.mark.parametrize("topic", ["meters/meter-2/reading", "vehicles/meter-2/reading", "meters/meter-1/other", "x"])
def test_a_device_cannot_publish_anything_else(broker: Broker, connect: Connect, topic: str) -> None:
    assert connect(broker, "meter-1").publish(topic) == NOT_AUTHORIZED


def test_a_device_reads_nothing(broker: Broker, connect: Connect) -> None:
    curious, device, daemon = connect(broker, "meter-2"), connect(broker, "meter-1"), connect(broker, "fleetwatt")
    curious.subscribe("meters/#", "#")
    daemon.subscribe("meters/#")
    device.publish("meters/meter-1/reading")
    daemon.receive()  # so the broker is through with this message
    curious.publish("meters/meter-2/reading")  # and whatever it sent before this answer has arrived
    assert curious.messages.empty()


@pytest.mark.parametrize("kind", ["meters", "vehicles"])
@pytest.mark.parametrize("name", ["meter-1", "fleetwatt"])
def test_the_daemon_publishes_nothing(broker: Broker, connect: Connect, kind: str, name: str) -> None:
    assert connect(broker, "fleetwatt").publish(f"{kind}/{name}/reading") == NOT_AUTHORIZED


@pytest.mark.parametrize(("username", "password"), [("meter-1", "wrong"), ("stranger", "first-secret"), (None, None)])
def test_nobody_enters_without_the_right_password(
    broker: Broker, connect: Connect, username: str | None, password: str | None
) -> None:
    assert connect(broker, username, password=password).reason.value == NOT_AUTHORIZED


def test_a_device_with_the_daemons_client_id_does_not_take_its_session(broker: Broker, connect: Connect) -> None:
    leave_a_session(connect, broker)
    device = connect(broker, "meter-1", client_id="fleetwatt", clean_start=True)
    device.publish("meters/meter-1/reading")
    device.close()
    daemon = connect(broker, "fleetwatt", **session())
    assert daemon.session_present
    assert daemon.receive() == ("meters/meter-1/reading", b"{}")


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
    start_broker: StartBroker, connect: Connect, certificates: Path
) -> None:
    subprocess.run([CERTIFICATES, "--client", "aa:bb", str(certificates)], check=True)
    broker = start_broker(require_certificate="true", use_identity_as_username="true")
    pair = {"certfile": str(certificates / "aa:bb.crt"), "keyfile": str(certificates / "aa:bb.key")}
    device = connect(broker, None, **pair)
    assert device.publish("meters/aa:bb/reading") == NO_SUBSCRIBERS  # taken, only there was no daemon yet
    assert device.publish("meters/meter-1/reading") == NOT_AUTHORIZED


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


async def test_the_daemon_itself_stores_over_tls_what_a_device_publishes(
    broker: Broker, connect: Connect, tmp_path: Path, database_url: str, database: asyncpg.Connection
) -> None:
    daemon = Daemon(tmp_path, broker, database_url, f"fleetwatt:{PASSWORDS['fleetwatt']}")
    daemon.process.start(lambda: daemon.says("subscribed"))
    device = connect(broker, "meter-1")
    assert device.publish("meters/meter-1/reading", b'{"kwhConsumedAc":0.25,"voltage":230}') == 0

    async def stored() -> bool:
        return bool(await database.fetchval("SELECT count(*) FROM meter_status WHERE kwh_consumed_ac = 0.25"))

    await eventually(stored)
    assert daemon.process.stop() == 0
    assert not daemon.says(PASSWORDS["fleetwatt"])


def test_the_daemon_says_that_its_password_is_wrong(broker: Broker, tmp_path: Path, database_url: str) -> None:
    daemon = Daemon(tmp_path, broker, database_url, "fleetwatt:wrong")
    daemon.process.start(lambda: daemon.says("broker away, trying again"))
    assert daemon.says("the broker refused the connection: NOT_AUTHORIZED"), daemon.process.log_tail()
    assert daemon.process.stop() == 0


def test_the_daemon_does_not_talk_to_a_broker_that_its_authority_does_not_know(
    broker: Broker, tmp_path: Path, database_url: str
) -> None:
    others = tmp_path / "others"
    subprocess.run([CERTIFICATES, str(others), "localhost"], check=True)
    daemon = Daemon(tmp_path, broker, database_url, "fleetwatt:secret", MQTT_CA_FILE=str(others / "ca.crt"))
    daemon.process.start(lambda: daemon.says("broker away, trying again"))
    assert daemon.says("certificate verify failed"), daemon.process.log_tail()
    assert daemon.process.stop() == 0
