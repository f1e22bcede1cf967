"""One session with the broker: a real Mosquitto, and a scripted broker for what a real one does not do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import mqtt5
import pytest
from mqtt5 import (
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
)
from msgspec.structs import replace
from paho.mqtt import publish as paho
from structlog.testing import capture_logs

from daemon.accounts import Accounts
from daemon.metrics import Metrics
from daemon.subscriber import SESSION_EXPIRY_S, TOPICS, Broker, Session, Subscriber, broker_from_url
from dev.broker import PrivateBroker
from dev.publisher import Publisher

WAIT_S = 20
TOPIC = "meters/m-1/reading"
RECEIVE_MAXIMUM = 1000
GRANTED = SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE
SUBSCRIBED = SubAckPacket(1, [GRANTED, GRANTED])

Logs = list[Any]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for is on the other side of a socket
            await asyncio.sleep(0.002)


class House:
    """A running subscriber, with what it received and what it logged."""

    def __init__(self, broker: Broker, logs: Logs) -> None:
        self.metrics = Metrics(Accounts(), lambda: 0.0)
        self.subscriber = Subscriber(broker, self._take, self.metrics)
        self.packets: list[PublishPacket] = []
        self.sessions: list[Session] = []
        self.logs = logs
        self.running = asyncio.create_task(self.subscriber.run())

    def _take(self, session: Session, publishes: list[PublishPacket]) -> None:
        if session not in self.sessions:
            self.sessions.append(session)
        self.packets += publishes

    @property
    def payloads(self) -> list[bytes]:
        return [packet.payload for packet in self.packets]

    @property
    def ids(self) -> list[int]:
        return [packet.packet_id for packet in self.packets if packet.packet_id is not None]

    def count(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"fleetwatt_{name}")

    def errors(self) -> list[str]:
        return [entry["error"] for entry in self.logs if entry["event"] == "broker away, trying again"]

    def said(self, event: str) -> bool:
        return any(event in entry["event"] for entry in self.logs)

    async def subscribed(self) -> None:
        await until(lambda: self.subscriber.subscribed)

    async def received(self, count: int) -> list[bytes]:
        await until(lambda: len(self.packets) >= count)
        return self.payloads

    async def connected_again(self, cut: Callable[[], object]) -> None:
        """Forget what was received, do what ends the connection, and wait until the next one is subscribed."""
        self.packets.clear()
        before = self.count("mqtt_connections_total")
        cut()
        await until(lambda: self.count("mqtt_connections_total") != before and self.subscriber.subscribed)

    def cut(self) -> None:
        """Cut the connection on which something was received last."""
        self.sessions[-1].abort("cut by the test")

    async def stop(self) -> None:
        self.subscriber.stop_intake()
        await self.subscriber.disconnect()


@asynccontextmanager
async def subscriber_at(port: int, **changes: Any) -> AsyncIterator[House]:
    """A subscriber that runs for the time of the block."""
    url = f"mqtt://127.0.0.1:{port}"
    usual = broker_from_url(url, tls=None, client_id="fleetwatt", share_group=None, receive_maximum=RECEIVE_MAXIMUM)
    with capture_logs() as logs:
        house = House(replace(usual, **changes), logs)
        try:
            yield house
        finally:
            await house.stop()
            house.running.cancel()  # where it waits for its next try
            with contextlib.suppress(asyncio.CancelledError):
                await house.running


async def publish(broker: PrivateBroker, *payloads: bytes) -> None:
    """Publish with QoS 1; the broker has all of it when this returns."""
    assert await Publisher(broker.port, "device").publish((TOPIC, payload) for payload in payloads) == len(payloads)


async def publish_with_paho(broker: PrivateBroker, *messages: Any) -> None:
    await asyncio.to_thread(paho.multiple, [*messages], hostname="127.0.0.1", port=broker.port)


async def round_trip(session: Session) -> None:
    """Wait for a PINGRESP: what the broker sent before is then here as well."""
    before_s = session.heard_at_s
    session.ping()
    await until(lambda: session.heard_at_s > before_s)


NUMBERED = [b"%d" % n for n in range(50)]


# A real broker.


async def test_messages_of_every_qos_arrive_with_qos_0_or_1_and_with_their_bytes(broker: PrivateBroker) -> None:
    payloads = {0: b"zero", 1: bytes(range(256)), 2: b""}
    async with subscriber_at(broker.port) as house:
        await house.subscribed()
        for qos, payload in payloads.items():
            for topic in (TOPIC, "vehicles/v-1/reading", f"meters/beside/the/contract/{qos}"):
                await publish_with_paho(broker, {"topic": topic, "payload": payload, "qos": qos})
        await house.received(9)
        assert {packet.topic for packet in house.packets} > {TOPIC, "vehicles/v-1/reading"}
        assert sorted(house.payloads) == sorted([*payloads.values()] * 3)
        assert {int(packet.qos) for packet in house.packets} <= {0, 1}
        assert house.count("messages_received_total") == 9


async def test_it_says_that_it_connected_and_subscribed(broker: PrivateBroker) -> None:
    async with subscriber_at(broker.port) as house:
        await house.subscribed()
        assert [(entry["log_level"], entry["event"]) for entry in house.logs] == [
            ("info", "connected to the broker with a new session"),
            ("info", "subscribed"),
        ]
        assert house.logs[1]["topics"] == list(TOPICS)
        assert (house.count("mqtt_subscribed"), house.count("mqtt_connections_total")) == (1, 1)
    assert (house.count("mqtt_subscribed"), house.count("mqtt_disconnections_total")) == (0, 1)


async def test_what_was_not_acknowledged_comes_again_after_a_reconnect_and_the_rest_does_not(
    broker: PrivateBroker,
) -> None:
    async with subscriber_at(broker.port) as house:
        await house.subscribed()
        await publish(broker, *NUMBERED)
        assert await house.received(50) == NUMBERED
        assert house.count("messages_acknowledged_total") == 0
        house.sessions[-1].acknowledge(house.ids[:20])
        await round_trip(house.sessions[-1])
        await house.connected_again(house.cut)
        assert await house.received(30) == NUMBERED[20:]
        assert all(packet.duplicate for packet in house.packets)
        house.sessions[-1].acknowledge(house.ids)
        await round_trip(house.sessions[-1])
        await house.connected_again(house.cut)
        await publish(broker, b"new")
        assert await house.received(1) == [b"new"]
        assert house.count("messages_acknowledged_total") == 50


async def test_an_acknowledgement_for_a_connection_that_is_gone_does_nothing(broker: PrivateBroker) -> None:
    async with subscriber_at(broker.port) as house:
        await house.subscribed()
        await publish(broker, *NUMBERED)
        await house.received(50)
        (gone,), ids = house.sessions, house.ids
        await house.connected_again(house.cut)
        gone.acknowledge(ids)
        await house.received(50)
        await house.connected_again(house.cut)
        assert await house.received(50) == NUMBERED
        assert house.count("messages_acknowledged_total") == 0


async def test_acknowledging_lets_more_than_the_receive_maximum_flow(broker: PrivateBroker) -> None:
    async with subscriber_at(broker.port, receive_maximum=5) as house:
        await house.subscribed()
        await publish(broker, *NUMBERED)
        await house.received(5)
        await round_trip(house.sessions[0])
        assert house.payloads == NUMBERED[:5]
        acknowledged = 0
        while acknowledged < 50:
            await house.received(acknowledged + 1)
            ids = house.ids[acknowledged:]
            house.sessions[0].acknowledge(ids)
            acknowledged += len(ids)
        assert house.payloads == NUMBERED


async def test_stopping_keeps_the_session_and_the_broker_keeps_what_is_published_meanwhile(
    broker: PrivateBroker,
) -> None:
    async with subscriber_at(broker.port) as house:
        await house.subscribed()
        await publish(broker, b"taken")
        await house.received(1)
        house.subscriber.stop_intake()
        await publish(broker, b"not taken any more")
        await round_trip(house.sessions[0])
        house.sessions[0].acknowledge(house.ids)  # still goes out
        await house.subscriber.disconnect()
        await asyncio.wait_for(house.running, WAIT_S)
        assert house.payloads == [b"taken"]
        assert house.errors() == []
    await publish(broker, *NUMBERED)
    async with subscriber_at(broker.port) as house:
        assert await house.received(51) == [b"not taken any more", *NUMBERED]
        assert house.logs[0]["event"] == "connected to the broker, the session is still there"


async def test_while_paused_nothing_is_taken_and_after_resuming_everything(broker: PrivateBroker) -> None:
    async with subscriber_at(broker.port) as house:
        await house.subscribed()
        house.subscriber.pause()
        house.subscriber.pause()
        await publish(broker, *NUMBERED)
        assert house.packets == []
        house.subscriber.resume()
        house.subscriber.resume()
        assert await house.received(50) == NUMBERED


async def test_a_pause_outlasts_the_connection(broker: PrivateBroker) -> None:
    async with subscriber_at(broker.port) as house:
        await house.subscribed()
        await publish(broker, b"before")
        await house.received(1)
        house.sessions[0].acknowledge(house.ids)
        await round_trip(house.sessions[0])
        house.subscriber.pause()
        house.cut()
        await until(lambda: house.count("mqtt_connections_total") == 2)
        await publish(broker, *NUMBERED)
        assert house.payloads == [b"before"]
        house.subscriber.resume()
        assert await house.received(51) == [b"before", *NUMBERED]
        await house.subscribed()


async def test_pausing_while_away_from_the_broker_holds_for_the_next_connection(broker: PrivateBroker) -> None:
    async with subscriber_at(broker.port) as house:
        house.subscriber.pause()
        await until(lambda: house.count("mqtt_connections_total") == 1)
        assert not house.subscriber.subscribed
        house.subscriber.resume()
        await house.subscribed()


async def test_after_a_restart_of_the_broker_it_connects_and_subscribes_by_itself(broker: PrivateBroker) -> None:
    async with subscriber_at(broker.port) as house:
        await house.subscribed()
        await asyncio.to_thread(broker.process.stop)
        await until(lambda: not house.subscriber.subscribed)
        assert house.count("mqtt_subscribed") == 0
        await asyncio.to_thread(broker.start)
        await house.subscribed()
        await publish(broker, *NUMBERED)
        assert await house.received(50) == NUMBERED
        assert house.said("the session is still there")


async def test_it_waits_for_a_broker_that_is_not_there_yet(broker: PrivateBroker) -> None:
    await asyncio.to_thread(broker.process.stop)
    async with subscriber_at(broker.port) as house:
        await until(lambda: len(house.errors()) >= 2)
        assert "Connect" in house.errors()[0]
        await asyncio.to_thread(broker.start)
        await house.subscribed()


async def test_a_broker_that_lost_the_session_is_an_error_and_is_subscribed_to_again(broker: PrivateBroker) -> None:
    async with subscriber_at(broker.port) as house:
        await house.subscribed()
        await asyncio.to_thread(broker.process.kill)
        await until(lambda: not house.subscriber.subscribed)
        await asyncio.to_thread(broker.start)  # its first save was still to come
        await house.subscribed()
        (loss,) = [entry for entry in house.logs if entry["log_level"] == "error"]
        assert "lost the session" in loss["event"]
        await publish(broker, b"new")
        assert await house.received(1) == [b"new"]


async def test_a_retained_message_comes_once(broker: PrivateBroker) -> None:
    await publish_with_paho(broker, {"topic": TOPIC, "payload": b"old", "qos": 1, "retain": True})
    async with subscriber_at(broker.port) as house:
        assert await house.received(1) == [b"old"]
        await house.subscribed()
        house.sessions[-1].acknowledge(house.ids)
        await round_trip(house.sessions[-1])
        await house.connected_again(house.cut)
        await publish(broker, b"new")
        assert await house.received(1) == [b"new"]


async def test_when_another_takes_the_session_over_it_takes_it_back_and_says_what_is_lost(
    broker: PrivateBroker,
) -> None:
    async with subscriber_at(broker.port) as house:
        await house.subscribed()
        await Publisher(broker.port, "fleetwatt").publish([])  # with a clean start, as a careless device would
        await until(lambda: bool(house.errors()))
        assert house.errors()[0].startswith(("the broker disconnected us: SESSION_TAKEN_OVER", "the broker closed"))
        await house.subscribed()
        assert house.said("lost the session")
        await publish(broker, b"new")
        assert await house.received(1) == [b"new"]


async def test_those_of_a_share_group_divide_the_messages(broker: PrivateBroker) -> None:
    async with (
        subscriber_at(broker.port, client_id="first", share_group="store") as first,
        subscriber_at(broker.port, client_id="second", share_group="store") as second,
    ):
        await first.subscribed()
        await second.subscribed()
        await publish(broker, *NUMBERED)
        await until(lambda: len(first.packets) + len(second.packets) >= 50)
        assert sorted(first.payloads + second.payloads) == sorted(NUMBERED)
        assert first.packets
        assert second.packets


# A scripted broker.


class Peer:
    """The broker's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = b""

    async def receive(self) -> mqtt5.Packet:
        """The next packet; raises EOFError after the last one."""
        while True:
            try:
                packet, size = mqtt5.read(memoryview(self._buffer))
            except IndexError:
                data = await self._reader.read(65536)
                if not data:
                    raise EOFError from None
                self._buffer += data
            else:
                self._buffer = self._buffer[size:]
                return packet

    async def send(self, *packets: Any) -> None:
        self._writer.write(b"".join(packet if isinstance(packet, bytes) else packet.write() for packet in packets))
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


Script = Callable[[Peer], Awaitable[None]]


async def connect(peer: Peer) -> None:
    assert isinstance(await peer.receive(), ConnectPacket)
    await peer.send(ConnAckPacket())


async def welcome(peer: Peer) -> None:
    """What every broker does with a new client."""
    await connect(peer)
    assert isinstance(await peer.receive(), SubscribePacket)
    await peer.send(SUBSCRIBED)


class ScriptedBroker:
    """Plays one script with each connection, and after the last one is an ordinary broker."""

    def __init__(self, scripts: tuple[Script, ...]) -> None:
        self._scripts = iter(scripts)
        self.port = 0
        self.heard: list[list[mqtt5.Packet]] = []
        """What each client said after its script was played."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer, heard = Peer(reader, writer), list[mqtt5.Packet]()
        self.heard.append(heard)
        with contextlib.suppress(EOFError, ConnectionError):
            await next(self._scripts, welcome)(peer)
            while True:
                heard.append(await peer.receive())
        peer.close()


@asynccontextmanager
async def broker_with(*scripts: Script) -> AsyncIterator[ScriptedBroker]:
    broker = ScriptedBroker(scripts)
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    broker.port = server.sockets[0].getsockname()[1]
    async with server:
        yield broker


def sending(*packets: Any) -> Script:
    """Subscribed as usual, and then these packets."""

    async def script(peer: Peer) -> None:
        await welcome(peer)
        await peer.send(*packets)

    return script


def answering(connack: ConnAckPacket | bytes, suback: SubAckPacket | None = None) -> Script:
    """CONNECT and SUBSCRIBE are answered so, and the client is not disconnected."""

    async def script(peer: Peer) -> None:
        assert isinstance(await peer.receive(), ConnectPacket)
        await peer.send(connack)
        if suback is not None:
            assert isinstance(await peer.receive(), SubscribePacket)
            await peer.send(suback)

    return script


async def hanging_up(peer: Peer) -> None:
    await peer.receive()
    peer.close()


def closing_after(script: Script) -> Script:
    async def script_and_end(peer: Peer) -> None:
        await script(peer)
        peer.close()

    return script_and_end


FORBIDDEN = "the broker sent what MQTT 5 forbids"
QOS_2 = PublishPacket(TOPIC, b"x", qos=QoS.EXACTLY_ONCE, packet_id=1)
ALIASED = PublishPacket("", b"x", topic_alias=1)
NOT_UTF8 = PublishPacket(TOPIC, b"x", user_properties=[("QQ", "value")]).write().replace(b"QQ", b"\xff\xff")
REFUSED = ConnAckPacket(reason_code=ConnAckReasonCode.NOT_AUTHORIZED, reason_str="who are you?")
SHUTTING_DOWN = DisconnectPacket(reason_code=DisconnectReasonCode.SERVER_SHUTTING_DOWN, reason_str="back at noon")

ENDS = {
    "hangs up": (hanging_up, "the broker closed the connection"),
    "hangs up after SUBACK": (closing_after(welcome), "the broker closed the connection"),
    "is a web server": (
        closing_after(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
        "the broker closed the connection",
    ),
    "answers garbage": (answering(b"\0\0\0\0"), f"{FORBIDDEN}: Invalid PacketType value: 0"),
    "sends garbage later": (sending(b"\xff\xff\xff\xff\xff\xff"), FORBIDDEN),
    "refuses the connection": (answering(REFUSED), "the broker refused the connection: NOT_AUTHORIZED (who are you?)"),
    "refuses a subscription": (
        answering(ConnAckPacket(), SubAckPacket(1, [GRANTED, SubAckReasonCode.NOT_AUTHORIZED])),
        "the broker refused the subscription to vehicles/#: NOT_AUTHORIZED",
    ),
    "refuses every subscription": (
        answering(ConnAckPacket(), SubAckPacket(1, [SubAckReasonCode.QUOTA_EXCEEDED] * 2)),
        "the broker refused the subscription to meters/#: QUOTA_EXCEEDED",
    ),
    "answers another subscription": (
        answering(ConnAckPacket(), SubAckPacket(2, [GRANTED, GRANTED])),
        f"{FORBIDDEN}: an unexpected SubAckPacket",
    ),
    "disconnects with its reason": (
        closing_after(sending(SHUTTING_DOWN)),
        "the broker disconnected us: SERVER_SHUTTING_DOWN (back at noon)",
    ),
    "gives the session to another": (
        closing_after(sending(DisconnectPacket(reason_code=DisconnectReasonCode.SESSION_TAKEN_OVER))),
        "the broker disconnected us: SESSION_TAKEN_OVER",
    ),
    "disconnects and forgets to close": (
        sending(SHUTTING_DOWN),
        "the broker disconnected us: SERVER_SHUTTING_DOWN (back at noon)",
    ),
    "sends QoS 2": (sending(QOS_2), f"{FORBIDDEN}: a message of QoS 2 where QoS 1 was granted"),
    "sends a topic alias": (sending(ALIASED), f"{FORBIDDEN}: a topic alias, which was not allowed"),
    "sends a second CONNACK": (sending(ConnAckPacket()), f"{FORBIDDEN}: an unexpected ConnAckPacket"),
    "sends a second SUBACK": (sending(SUBSCRIBED), f"{FORBIDDEN}: an unexpected SubAckPacket"),
    "sends CONNECT": (sending(ConnectPacket("x")), f"{FORBIDDEN}: an unexpected ConnectPacket"),
    "sends PINGREQ": (sending(PingReqPacket()), f"{FORBIDDEN}: an unexpected PingReqPacket"),
    "sends PUBACK": (sending(PubAckPacket(1)), f"{FORBIDDEN}: an unexpected PubAckPacket"),
}


@pytest.mark.parametrize(("script", "error"), ENDS.values(), ids=list(ENDS))
async def test_a_broker_that(script: Script, error: str) -> None:
    """… does this, ends the connection with a line that says so, and a new connection follows."""
    async with broker_with(script) as broker, subscriber_at(broker.port) as house:
        await until(lambda: bool(house.errors()))
        await house.subscribed()
        (logged,) = house.errors()
        assert logged.startswith(error)
        assert house.packets == []
        await until(lambda: len(broker.heard) == 2)
    if error.startswith(FORBIDDEN):
        (farewell,) = [packet for packet in broker.heard[0] if not isinstance(packet, SubscribePacket)]
        assert isinstance(farewell, DisconnectPacket)
        assert farewell.reason_code == DisconnectReasonCode.PROTOCOL_ERROR


# The codec panics where it should raise, and Python reports that beside the exception.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_property_that_is_no_utf8_ends_the_connection_and_not_the_daemon() -> None:
    async with broker_with(sending(NOT_UTF8)) as broker, subscriber_at(broker.port) as house:
        await until(lambda: bool(house.errors()))
        assert house.errors()[0].startswith(FORBIDDEN)
        await until(lambda: len(broker.heard) == 2)
        await house.subscribed()


async def test_it_asks_for_a_lasting_session_its_receive_maximum_and_qos_1() -> None:
    asked: list[mqtt5.Packet] = []

    async def script(peer: Peer) -> None:
        asked.append(await peer.receive())
        await peer.send(ConnAckPacket())
        asked.append(await peer.receive())
        await peer.send(SUBSCRIBED)

    account = {"username": "fleet", "password": b"p@ss", "share_group": "store"}
    async with broker_with(script) as broker, subscriber_at(broker.port, **account) as house:
        await house.subscribed()
    connect_packet, subscribe_packet = asked
    assert isinstance(connect_packet, ConnectPacket)
    assert (connect_packet.client_id, connect_packet.clean_start) == ("fleetwatt", False)
    assert (connect_packet.username, connect_packet.password) == ("fleet", b"p@ss")
    assert connect_packet.session_expiry_interval == SESSION_EXPIRY_S
    assert connect_packet.receive_max == RECEIVE_MAXIMUM
    assert (connect_packet.max_packet_size, connect_packet.topic_alias_max) == (None, 0)
    assert isinstance(subscribe_packet, SubscribePacket)
    filters = [(each.pattern, each.max_qos) for each in subscribe_packet.topic_filters]
    assert filters == [(f"$share/store/{topic}", QoS.AT_LEAST_ONCE) for topic in TOPICS]


async def test_a_suback_may_come_late_behind_the_messages_that_the_broker_kept() -> None:
    kept = [PublishPacket(TOPIC, payload, qos=QoS.AT_LEAST_ONCE, packet_id=n + 1) for n, payload in enumerate(NUMBERED)]
    suback_is_due = asyncio.Event()

    async def script(peer: Peer) -> None:
        assert isinstance(await peer.receive(), ConnectPacket)
        await peer.send(ConnAckPacket(session_present=True), *kept[:25])
        assert isinstance(await peer.receive(), SubscribePacket)
        await peer.send(*kept[25:])
        await suback_is_due.wait()
        await peer.send(SUBSCRIBED)

    async with broker_with(script) as broker, subscriber_at(broker.port) as house:
        assert await house.received(50) == NUMBERED
        assert not house.subscriber.subscribed
        house.sessions[0].acknowledge(house.ids)
        suback_is_due.set()
        await house.subscribed()
        await until(lambda: len(broker.heard[0]) == 50)
        assert [packet.packet_id for packet in broker.heard[0] if isinstance(packet, PubAckPacket)] == house.ids
        assert house.errors() == []


async def test_acknowledgements_go_out_in_the_order_given_and_without_an_error_code() -> None:
    published = [PublishPacket(TOPIC, b"x", qos=QoS.AT_LEAST_ONCE, packet_id=n) for n in (7, 65535, 1, 256)]
    async with broker_with(sending(*published)) as broker, subscriber_at(broker.port) as house:
        await house.received(4)
        house.sessions[0].acknowledge([])
        house.sessions[0].acknowledge(house.ids)
        await until(lambda: len(broker.heard[0]) == 4)
        said = [(each.packet_id, int(each.reason_code)) for each in broker.heard[0] if isinstance(each, PubAckPacket)]
        assert said == [(7, 0), (65535, 0), (1, 0), (256, 0)]


async def test_messages_before_a_disconnect_in_the_same_breath_are_taken() -> None:
    script = sending(PublishPacket(TOPIC, b"last words"), SHUTTING_DOWN)
    async with broker_with(script) as broker, subscriber_at(broker.port) as house:
        assert await house.received(1) == [b"last words"]
        house.sessions[0].acknowledge([1])  # the connection is closing: no harm
        await until(lambda: bool(house.errors()))
        await house.subscribed()


async def test_a_grant_of_qos_0_alone_is_warned_about() -> None:
    only = SubAckReasonCode.GRANTED_QOS_AT_MOST_ONCE
    script = answering(ConnAckPacket(), SubAckPacket(1, [GRANTED, only]))
    async with broker_with(script) as broker, subscriber_at(broker.port) as house:
        await house.subscribed()
        (warning,) = [entry for entry in house.logs if entry["log_level"] == "warning"]
        assert warning["event"] == "the broker grants only QoS 0: messages may be lost"
        assert warning["topic"] == "vehicles/#"


async def test_a_connack_that_never_comes_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.subscriber.CONNECT_TIMEOUT_S", 0.05)

    async def silence(peer: Peer) -> None:
        await peer.receive()

    async with broker_with(silence) as broker, subscriber_at(broker.port) as house:
        await until(lambda: bool(house.errors()))
        assert "did not answer within" in house.errors()[0]
        await until(lambda: len(broker.heard) == 2)


async def test_it_pings_when_idle_and_cuts_a_connection_on_which_nothing_comes_any_more() -> None:
    async def silence(peer: Peer) -> None:
        await answering(ConnAckPacket(server_keep_alive=1), SUBSCRIBED)(peer)

    async with broker_with(silence) as broker, subscriber_at(broker.port) as house:
        await until(lambda: bool(house.errors()))
        assert house.errors()[0].startswith("nothing was heard from the broker for ")
        assert {type(packet) for packet in broker.heard[0]} == {PingReqPacket}
        await house.subscribed()


async def test_stopping_while_connecting_takes_nothing_from_the_new_connection() -> None:
    stopped = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        await stopped.wait()
        await peer.send(ConnAckPacket())
        await peer.receive()
        await peer.send(SUBSCRIBED, PublishPacket(TOPIC, b"too late"), SHUTTING_DOWN)

    async with broker_with(script) as broker, subscriber_at(broker.port) as house:
        await until(lambda: bool(broker.heard))
        house.subscriber.stop_intake()
        stopped.set()
        await asyncio.wait_for(house.running, WAIT_S)
        assert house.packets == []


async def test_stopping_before_the_start_and_twice_is_safe() -> None:
    async with broker_with() as broker, subscriber_at(broker.port) as house:
        await house.stop()
        await house.stop()


# One session, fed by hand.


@pytest.fixture
def stream() -> bytes:
    packets: list[Any] = [
        ConnAckPacket(session_present=True),
        PublishPacket(TOPIC, b"a" * 200, qos=QoS.AT_LEAST_ONCE, packet_id=300),
        SUBSCRIBED,
        PublishPacket(TOPIC, b""),
        PingRespPacket(),
        PublishPacket("vehicles/v-1/reading", b"{}", qos=QoS.AT_LEAST_ONCE, packet_id=1, user_properties=[("a", "b")]),
    ]
    return b"".join(packet.write() for packet in packets)


def pieces_of(stream: bytes) -> Iterator[list[bytes]]:
    """The stream cut in two at every byte, and cut into pieces of every small size."""
    for at in range(len(stream) + 1):
        yield [stream[:at], stream[at:]]
    for size in range(1, 20):
        yield [stream[at : at + size] for at in range(0, len(stream), size)]


async def test_packets_may_be_cut_anywhere(stream: bytes) -> None:
    broker = broker_from_url("mqtt://h", tls=None, client_id="c", share_group=None, receive_maximum=10)
    for pieces in pieces_of(stream):
        taken: list[tuple[str, bytes, int | None]] = []

        def take(
            _: Session, publishes: list[PublishPacket], taken: list[tuple[str, bytes, int | None]] = taken
        ) -> None:
            taken += [(packet.topic, packet.payload, packet.packet_id) for packet in publishes]

        session = Session(broker, take, Metrics(Accounts(), lambda: 0.0))
        for piece in pieces:
            session.data_received(piece)
        assert taken == [(TOPIC, b"a" * 200, 300), (TOPIC, b"", None), ("vehicles/v-1/reading", b"{}", 1)]
        assert session.connack.result().session_present
        assert session.suback.result().reason_codes == [GRANTED, GRANTED]


@pytest.mark.parametrize(
    ("url", "host", "port", "username", "password"),
    [
        ("mqtt://mq.example", "mq.example", 1883, None, None),
        ("mqtts://mq.example", "mq.example", 8883, None, None),
        ("MQTTS://MQ.example:1", "mq.example", 1, None, None),
        ("mqtt://mq.example:1884/", "mq.example", 1884, None, None),
        ("mqtt://[::1]", "::1", 1883, None, None),
        ("mqtts://fleet:secret@[2001:db8::1]:8884", "2001:db8::1", 8884, "fleet", b"secret"),
        ("mqtt://fleet@192.0.2.1", "192.0.2.1", 1883, "fleet", None),
        ("mqtt://fleet:@192.0.2.1", "192.0.2.1", 1883, "fleet", None),
        ("mqtt://fl%40et:p%40ss%3Aw%2Frd%25%20%C3%A4@mq.example", "mq.example", 1883, "fl@et", "p@ss:w/rd% ä".encode()),
        ("mqtt://fleet:pä:s+s@mq.example", "mq.example", 1883, "fleet", "pä:s+s".encode()),
    ],
)
def test_a_broker_is_read_from_its_url(
    url: str, host: str, port: int, username: str | None, password: bytes | None
) -> None:
    broker = broker_from_url(url, tls=None, client_id="c", share_group=None, receive_maximum=10)
    assert (broker.host, broker.port, broker.username, broker.password) == (host, port, username, password)
    assert broker.address == f"{host}:{port}"
    assert "secret" not in broker.address
