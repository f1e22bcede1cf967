"""One session with the broker: a real Mosquitto, and a scripted broker for what a real one does not do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import mqtt5
import pytest
from mqtt5 import (
    AuthPacket,
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    PubRelPacket,
    QoS,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
    UnsubAckPacket,
    UnsubAckReasonCode,
    UnsubscribePacket,
)
from msgspec.structs import replace
from paho.mqtt import publish as paho
from structlog.testing import capture_logs

from daemon.accounts import Accounts
from daemon.metrics import Metrics
from daemon.readings import PAYLOAD_BYTES_MAX
from daemon.subscriber import (
    PACKET_BYTES_MAX,
    SESSION_EXPIRY_S,
    TOPICS,
    Broker,
    Session,
    Subscriber,
    broker_from_url,
)
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


def raw_message(topic: bytes, properties: bytes = b"", payload: bytes = b"x") -> bytes:
    body = len(topic).to_bytes(2, "big") + topic + bytes([len(properties)]) + properties + payload
    return bytes([0x30, len(body)]) + body


ODD_MESSAGES: list[Any] = [
    *(
        PublishPacket(f"meters/{odd}", b"x")
        for odd in ("\x7f", "\ufeff", "\ufffe", "\U0001fffe", "\U0001f50b", " ", "/")
    ),
    PublishPacket("meters", b"", retain=True),
    PublishPacket("meters/" + "x/" * 150, b"x"),
    PublishPacket("meters/" + "x" * 60_000, b"x"),
    PublishPacket(TOPIC, b"\xff", payload_format_indicator=1),
    PublishPacket(TOPIC, b"x", message_expiry_interval=1, content_type="\U0001f50b", response_topic="r"),
    PublishPacket(TOPIC, b"x", correlation_data=b"\0\xff" * 1000),
    PublishPacket(TOPIC, b"x", user_properties=[("", ""), ("a", "\ufeff\x7f")] * 1000),
    PublishPacket(TOPIC, b"x", topic_alias=1),
    PublishPacket(TOPIC, b"x", qos=QoS.EXACTLY_ONCE, packet_id=1),
    PublishPacket(TOPIC, b"x" * 2_000_000),
    *(
        raw_message(topic)
        for topic in (b"meters/\0", b"meters/\xff", b"meters/\xed\xa0\x80", b"meters/#", b"meters/\1", b"")
    ),
    *(
        raw_message(TOPIC.encode(), named + text)
        for named in (b"\x03", b"\x26\0\1a")
        for text in (b"\0\1\xff", b"\0\1\0")
    ),
    raw_message(TOPIC.encode(), b"\x01\x02"),
]


async def send_raw(port: int, packet: bytes) -> None:
    """Publish as a device would that makes its packets itself; returns when the broker has seen it, liked or not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    peer = Peer(reader, writer)
    await peer.send(ConnectPacket("device", clean_start=True), packet, PubRelPacket(1), PingReqPacket())
    with contextlib.suppress(EOFError, ConnectionError):
        while not isinstance(await peer.receive(), PingRespPacket):
            pass
    peer.close()


async def test_nothing_that_a_device_gets_through_the_broker_ends_the_session(broker: PrivateBroker) -> None:
    """It would come again after each reconnect, and every other message would wait behind it."""
    async with subscriber_at(broker.port) as house:
        await house.subscribed()
        for odd in ODD_MESSAGES:
            await send_raw(broker.port, odd if isinstance(odd, bytes) else odd.write())
        await publish(broker, b"the last")
        await until(lambda: b"the last" in house.payloads)
        assert len(house.packets) > 10
        assert house.errors() == []


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


def message(packet_id: int, payload: bytes = b"x") -> PublishPacket:
    return PublishPacket(TOPIC, payload, qos=QoS.AT_LEAST_ONCE, packet_id=packet_id)


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
MOVED = ConnAckPacket(reason_code=ConnAckReasonCode.SERVER_MOVED, server_reference="mq2.example")
RECEIVE_MAXIMUM_0 = b"\x20\x06\x00\x00\x03\x21\x00\x00"
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
        f"{FORBIDDEN}: a SUBACK for 2 where 1 was asked",
    ),
    "answers a subscription that nobody asked for": (
        answering(ConnAckPacket().write() + SUBSCRIBED.write()),
        f"{FORBIDDEN}: an unexpected SubAckPacket",
    ),
    "answers too few subscriptions": (
        answering(ConnAckPacket(), SubAckPacket(1, [GRANTED])),
        "the broker answered 1 of 2 subscriptions",
    ),
    "answers no subscription": (
        answering(ConnAckPacket(), SubAckPacket(1, [])),
        "the broker answered 0 of 2 subscriptions",
    ),
    "answers too many subscriptions": (
        answering(ConnAckPacket(), SubAckPacket(1, [GRANTED] * 3)),
        "the broker answered 3 of 2 subscriptions",
    ),
    "sends a message before CONNACK": (answering(message(1).write()), f"{FORBIDDEN}: a message before CONNACK"),
    "sends a message behind its refusal": (
        answering(REFUSED.write() + message(1).write()),
        "the broker refused the connection: NOT_AUTHORIZED",
    ),
    "refers to another broker": (
        answering(MOVED),
        "the broker refused the connection: SERVER_MOVED (it refers us to mq2.example)",
    ),
    "grants a Receive Maximum of 0": (
        answering(RECEIVE_MAXIMUM_0),
        f"{FORBIDDEN}: Receive maximum must be != 0",
    ),
    "gives another client id": (
        answering(ConnAckPacket(assigned_client_id="auto-1")),
        "the broker cannot serve us: it calls us 'auto-1', and another client id has another session",
    ),
    "knows no wildcards": (
        answering(ConnAckPacket(wildcard_subscription_available=False)),
        "the broker cannot serve us: it knows no wildcards in subscriptions",
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
    "disconnects and refers to another": (
        sending(DisconnectPacket(reason_code=DisconnectReasonCode.USE_ANOTHER_SERVER, server_reference="mq2.example")),
        "the broker disconnected us: USE_ANOTHER_SERVER (it refers us to mq2.example)",
    ),
    "sends QoS 3": (sending(b"\x36\x03\x00\x01m"), f"{FORBIDDEN}: Invalid QoS value: 3"),
    "sends the packet id 0": (sending(message(0)), f"{FORBIDDEN}: the packet id 0"),
    "sets reserved flags": (sending(b"\xd1\x00"), f"{FORBIDDEN}: Invalid fixed header flags"),
    "sends a packet whose parts are longer than itself": (
        sending(b"\x30\x03\x00\x05m"),
        f"{FORBIDDEN}: Invalid remaining length",
    ),
    "announces a length of five bytes": (
        sending(b"\x30\xff\xff\xff\xff\x01"),
        f"{FORBIDDEN}: Invalid variable byte integer",
    ),
    "announces a quarter of a gigabyte of CONNACK": (
        sending(b"\x20\xff\xff\xff\x7f\x00"),
        f"{FORBIDDEN}: a packet of 268435460 bytes that is no message",
    ),
    "sends QoS 2": (sending(QOS_2), f"{FORBIDDEN}: a message of QoS 2 where QoS 1 was granted"),
    "sends a topic alias": (sending(ALIASED), f"{FORBIDDEN}: a topic alias, which was not allowed"),
    "sends a second CONNACK": (sending(ConnAckPacket()), f"{FORBIDDEN}: an unexpected ConnAckPacket"),
    "sends a second SUBACK": (sending(SUBSCRIBED), f"{FORBIDDEN}: an unexpected SubAckPacket"),
    "sends CONNECT": (sending(ConnectPacket("x")), f"{FORBIDDEN}: an unexpected ConnectPacket"),
    "sends PINGREQ": (sending(PingReqPacket()), f"{FORBIDDEN}: an unexpected PingReqPacket"),
    "acknowledges what was never sent": (sending(PubAckPacket(1)), f"{FORBIDDEN}: an unexpected PubAckPacket"),
    "acknowledges SUBSCRIBE as a message": (sending(PubRelPacket(1)), f"{FORBIDDEN}: an unexpected PubRelPacket"),
    "ends a subscription": (
        sending(UnsubAckPacket(1, [UnsubAckReasonCode.SUCCESS])),
        f"{FORBIDDEN}: an unexpected UnsubAckPacket",
    ),
    "wants to authenticate": (
        sending(AuthPacket(authentication_method="m")),
        f"{FORBIDDEN}: an unexpected AuthPacket",
    ),
    "closes in the middle of a packet": (
        closing_after(sending(message(1).write()[:-1])),
        "the broker closed the connection",
    ),
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
        assert house.errors()[0].startswith(f"{FORBIDDEN}: text that is not UTF-8")
        await until(lambda: len(broker.heard) == 2)
        await house.subscribed()


async def test_it_asks_for_a_lasting_session_its_receive_maximum_and_qos_1() -> None:
    asked: list[mqtt5.Packet] = []

    async def script(peer: Peer) -> None:
        asked.append(await peer.receive())
        await peer.send(ConnAckPacket())
        asked.append(await peer.receive())
        await peer.send(SUBSCRIBED)
        asked.append(await peer.receive())

    account = {"username": "fleet", "password": b"p@ss", "share_group": "store"}
    async with broker_with(script) as broker, subscriber_at(broker.port, **account) as house:
        await house.subscribed()
    connect_packet, subscribe_packet, unsubscribe_packet = asked
    assert isinstance(connect_packet, ConnectPacket)
    assert (connect_packet.client_id, connect_packet.clean_start) == ("fleetwatt", False)
    assert (connect_packet.username, connect_packet.password) == ("fleet", b"p@ss")
    assert connect_packet.session_expiry_interval == SESSION_EXPIRY_S
    assert connect_packet.receive_max == RECEIVE_MAXIMUM
    assert (connect_packet.max_packet_size, connect_packet.topic_alias_max) == (None, 0)
    assert isinstance(subscribe_packet, SubscribePacket)
    assert isinstance(unsubscribe_packet, UnsubscribePacket), "from what it had without a group"
    assert unsubscribe_packet.patterns == list(TOPICS)
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


async def test_a_broker_that_uses_an_id_twice_is_left_and_both_messages_before_that_count() -> None:
    """Both were taken; the second PUBACK with that id could acknowledge a third message, which is not stored yet."""
    script = sending(message(1, b"first"), message(2, b"second"), message(1, b"third"), message(3, b"fourth"))
    async with broker_with(script) as broker, subscriber_at(broker.port) as house:
        await until(lambda: bool(house.errors()))
        assert house.errors() == [f"{FORBIDDEN}: the packet id 1 again, before it was acknowledged"]
        assert house.payloads == [b"first", b"second"]
        await house.subscribed()
        assert [type(packet) for packet in broker.heard[0]] == [DisconnectPacket]


async def test_an_id_may_come_again_once_it_was_acknowledged_and_only_then() -> None:
    acknowledged = asyncio.Event()

    async def script(peer: Peer) -> None:
        await sending(message(1, b"first"), message(2, b"second"))(peer)
        await acknowledged.wait()
        await peer.send(message(1, b"third"), message(1, b"fourth"))

    async with broker_with(script) as broker, subscriber_at(broker.port, receive_maximum=2) as house:
        await house.received(2)
        house.sessions[0].acknowledge([1, 2])
        acknowledged.set()
        assert await house.received(3) == [b"first", b"second", b"third"]
        await until(lambda: bool(house.errors()))
        assert house.errors() == [f"{FORBIDDEN}: the packet id 1 again, before it was acknowledged"]


async def test_a_broker_that_exceeds_the_receive_maximum_may_run_out_of_ids() -> None:
    """Mosquitto 2.0 does so after a reconnect, with more than 65,535 messages waiting."""
    script = sending(message(1, b"first"), message(2, b"second"), message(1, b"third"))
    async with broker_with(script) as broker, subscriber_at(broker.port, receive_maximum=2) as house:
        assert await house.received(3) == [b"first", b"second", b"third"]
        house.sessions[0].acknowledge(house.ids)
        await until(lambda: len(broker.heard[0]) == 3)
        assert house.errors() == []


async def test_a_broker_without_shared_subscriptions_cannot_serve_a_share_group() -> None:
    poor = ConnAckPacket(shared_subscription_available=False)
    async with broker_with(answering(poor)) as broker, subscriber_at(broker.port, share_group="store") as house:
        await until(lambda: bool(house.errors()))
        assert house.errors()[0].startswith("the broker cannot serve us: it knows no shared subscriptions")
    async with broker_with(answering(poor, SUBSCRIBED)) as broker, subscriber_at(broker.port) as house:
        await house.subscribed()


async def test_what_a_broker_offers_less_than_was_asked_is_said() -> None:
    poor = ConnAckPacket(max_qos=QoS.AT_MOST_ONCE, session_expiry_interval=60)
    async with broker_with(answering(poor, SUBSCRIBED)) as broker, subscriber_at(broker.port) as house:
        await house.subscribed()
        said = {entry["event"]: entry for entry in house.logs}
        no_qos_1 = said["the broker knows only QoS 0: messages will be lost; see docs/broker.md"]
        assert no_qos_1["log_level"] == "error"
        shorter = said["the broker will keep the session for a shorter time than asked"]
        assert (shorter["log_level"], shorter["expiry_s"]) == ("warning", 60)


@pytest.mark.parametrize("properties", [0, 3 * 1024 * 1024])
async def test_of_a_message_that_is_too_large_the_start_is_taken_and_the_rest_is_read_past(properties: int) -> None:
    """A session that ended over it would get it again, for ever, and every other message would wait behind it."""
    filling = [("", "p" * 50_000)] * (properties // 50_000)
    large = PublishPacket(
        TOPIC, b"x" * 5 * 1024 * 1024, qos=QoS.AT_LEAST_ONCE, packet_id=2, retain=True, user_properties=filling
    )
    script = sending(message(1, b"before"), large, message(3, b"behind"))
    async with broker_with(script) as broker, subscriber_at(broker.port) as house:
        await house.received(3)
        before, start, behind = house.packets
        assert (before.payload, behind.payload) == (b"before", b"behind")
        assert (start.topic, start.qos, start.packet_id, start.retain) == (TOPIC, QoS.AT_LEAST_ONCE, 2, True)
        assert len(start.payload) > PAYLOAD_BYTES_MAX
        assert start.payload in large.write()
        house.sessions[0].acknowledge(house.ids)
        await until(lambda: len(broker.heard[0]) == 3)
        assert house.errors() == []
        (warning,) = [entry for entry in house.logs if entry["log_level"] == "warning"]
        assert (warning["topic"], warning["packet_bytes"]) == (TOPIC, len(large.write()))


async def test_what_a_broker_sends_while_paused_stays_with_it_even_at_qos_0() -> None:
    """Nothing bounds messages of QoS 0 but the sockets' own buffers."""
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await welcome(peer)
        while True:
            await peer.send(PublishPacket(TOPIC, b"x" * 1_000_000))
            sent += 1

    async with broker_with(script) as broker, subscriber_at(broker.port) as house:
        await house.received(1)
        house.subscriber.pause()
        taken, seen = len(house.packets), -1
        while seen != sent:  # until the broker can send nothing more
            seen = sent
            await asyncio.sleep(0.3)
        assert len(house.packets) == taken
        house.subscriber.resume()
        await house.received(sent + 10)


async def test_a_broker_that_reads_nothing_does_not_make_memory_grow() -> None:
    deaf = asyncio.Event()

    async def script(peer: Peer) -> None:
        await sending(message(1))(peer)
        await deaf.wait()
        raise EOFError  # hangs up without having read anything

    async with broker_with(script) as broker, subscriber_at(broker.port) as house:
        await house.received(1)
        for _ in range(1000):
            house.sessions[0].acknowledge([1] * 65_535)
        await until(lambda: bool(house.errors()))
        assert house.errors() == ["the broker does not read what is sent to it"]
        await house.subscribed()
        deaf.set()


@pytest.mark.parametrize("unsent_max", [0, 1 << 40])
async def test_a_connection_ends_even_if_the_broker_does_not_read_the_good_bye(
    monkeypatch: pytest.MonkeyPatch, unsent_max: int
) -> None:
    monkeypatch.setattr("daemon.subscriber.UNSENT_BYTES_MAX", 1 << 40)
    monkeypatch.setattr("daemon.subscriber.CLOSE_TIMEOUT_S", 0.05)
    may_lie, deaf = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await sending(message(1))(peer)
        await may_lie.wait()
        await peer.send(b"\0\0")
        await deaf.wait()
        raise EOFError  # hangs up without having read anything

    async with broker_with(script) as broker, subscriber_at(broker.port) as house:
        await house.received(1)
        for _ in range(200):
            house.sessions[0].acknowledge([1] * 65_535)
        monkeypatch.setattr("daemon.subscriber.UNSENT_BYTES_MAX", unsent_max)  # the good-bye itself may be too much
        may_lie.set()
        await until(lambda: bool(house.errors()))
        assert house.errors() == [f"{FORBIDDEN}: Invalid PacketType value: 0"]
        await house.subscribed()
        deaf.set()


async def test_a_suback_that_never_comes_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.subscriber.SUBACK_TIMEOUT_S", 0.1)

    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(ConnAckPacket(server_keep_alive=1))
        while True:
            if isinstance(await peer.receive(), PingReqPacket):
                await peer.send(PingRespPacket())

    async with broker_with(script) as broker, subscriber_at(broker.port) as house:
        await until(lambda: bool(house.errors()))
        assert house.errors() == ["the broker did not answer SUBSCRIBE within 0.1 s"]
        await house.subscribed()


@pytest.mark.parametrize("keep_alive_s", [0, 65_535])
async def test_a_broker_cannot_make_it_wait_longer_for_a_dead_connection(
    monkeypatch: pytest.MonkeyPatch, keep_alive_s: int
) -> None:
    monkeypatch.setattr("daemon.subscriber.KEEP_ALIVE_S", 0.2)
    script = answering(ConnAckPacket(server_keep_alive=keep_alive_s), SUBSCRIBED)
    async with broker_with(script) as broker, subscriber_at(broker.port) as house:
        await until(lambda: bool(house.errors()))
        assert house.errors()[0].startswith("nothing was heard from the broker for ")


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


class Fed:
    """A session that is fed by hand, and what came of it."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.taken: list[tuple[str, bytes, int | None]] = []
        broker = broker_from_url("mqtt://h", tls=None, client_id="c", share_group=None, receive_maximum=10)
        self.session = Session(broker, self._take, Metrics(Accounts(), lambda: 0.0))
        self.session.subscribe()
        for piece in pieces:
            self.session.data_received(piece)

    def _take(self, session: Session, publishes: list[PublishPacket]) -> None:
        self.taken += [(packet.topic, packet.payload, packet.packet_id) for packet in publishes]

    def end(self) -> str:
        self.session.connection_lost(None)
        return str(self.session.ended.exception())


async def test_packets_may_be_cut_anywhere(stream: bytes) -> None:
    for pieces in pieces_of(stream):
        fed = Fed(pieces)
        assert fed.taken == [(TOPIC, b"a" * 200, 300), (TOPIC, b"", None), ("vehicles/v-1/reading", b"{}", 1)]
        assert fed.session.connack.result().session_present
        assert fed.session.suback.result().reason_codes == [GRANTED, GRANTED]


LIES = {
    "garbage": (b"\0\0", f"{FORBIDDEN}: Invalid PacketType value: 0"),
    "an id twice": (message(300).write(), f"{FORBIDDEN}: the packet id 300 again, before it was acknowledged"),
    "a topic alias": (ALIASED.write(), f"{FORBIDDEN}: a topic alias, which was not allowed"),
    "a second CONNACK": (ConnAckPacket().write(), f"{FORBIDDEN}: an unexpected ConnAckPacket"),
    "a good-bye": (SHUTTING_DOWN.write(), "the broker disconnected us: SERVER_SHUTTING_DOWN (back at noon)"),
}


@pytest.mark.parametrize(("lie", "end"), LIES.values(), ids=list(LIES))
async def test_wherever_it_is_cut_what_came_before_a_lie_is_taken_and_nothing_behind_it(
    stream: bytes, lie: bytes, end: str
) -> None:
    for pieces in pieces_of(stream + lie + message(7, b"behind").write() + ConnAckPacket().write()):
        fed = Fed(pieces)
        assert [payload for _, payload, _ in fed.taken] == [b"a" * 200, b"", b"{}"]
        assert fed.end() == end


@pytest.mark.parametrize("excess", [0, 1, 2, 65_536, 1_000_000])
@pytest.mark.parametrize("piece_bytes", [1_400, 65_536, 262_144])
async def test_a_message_of_any_size_is_followed_by_the_next_one(excess: int, piece_bytes: int) -> None:
    """The largest that is taken whole, and larger ones, in pieces as the network gives them."""
    payload = b"x" * (PACKET_BYTES_MAX - len(message(1, b"").write()) - 3 + excess)  # its length takes 3 bytes more
    messages = [message(1, b"before"), message(2, payload), message(3, b"behind"), message(4, payload)]
    stream = ConnAckPacket().write() + b"".join(packet.write() for packet in messages)
    assert len(messages[1].write()) == PACKET_BYTES_MAX + excess
    fed = Fed(stream[at : at + piece_bytes] for at in range(0, len(stream), piece_bytes))
    assert [packet_id for _, _, packet_id in fed.taken] == [1, 2, 3, 4]
    before, large, behind, last = (taken for _, taken, _ in fed.taken)
    assert (before, behind) == (b"before", b"behind")
    for taken in (large, last):
        assert taken in b"\0" + payload  # with the length of the properties, where only the start is taken
        assert len(taken) > PAYLOAD_BYTES_MAX
    if not excess:
        assert large == last == payload


@pytest.mark.parametrize(("qos", "packet_id"), [(QoS.AT_MOST_ONCE, None), (QoS.AT_LEAST_ONCE, 1)])
async def test_the_start_of_a_message_begins_with_its_properties(qos: QoS, packet_id: int | None) -> None:
    packet = PublishPacket(TOPIC, b"x" * 5 * 1024 * 1024, qos=qos, packet_id=packet_id, message_expiry_interval=7)
    stream = ConnAckPacket().write() + packet.write()
    fed = Fed(stream[at : at + 65_536] for at in range(0, len(stream), 65_536))
    ((topic, payload, found_id),) = fed.taken
    properties = b"\5\2\0\0\0\7"  # their length, and the message's expiry
    assert (topic, found_id) == (TOPIC, packet_id)
    assert payload == properties.ljust(len(payload), b"x")


async def test_the_start_of_a_message_that_is_too_large_is_checked_like_any_other() -> None:
    before = ConnAckPacket().write() + message(1).write()
    size = b"\xff\xff\xff\x7f"
    starts = {
        b"\x32" + size + b"\x00\x01m\x00\x01": "the packet id 1 again, before it was acknowledged",
        b"\x32" + size + b"\x00\x01m\x00\x00": "the packet id 0",
        b"\x34" + size + b"\x00\x01m\x00\x02": "a message of QoS 2 where QoS 1 was granted",
        b"\x36" + size + b"\x00\x01m\x00\x02": "Invalid QoS value: 3",
        b"\x30" + size + b"\x00\x00": "Topic alias must be set if topic is empty",
        b"\x30" + size + b"\x00\x01\xff": "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    }
    for start, end in starts.items():
        fed = Fed([before, start, *[b"x" * 65_536] * 40])
        assert [payload for _, payload, _ in fed.taken] == [b"x"]
        assert fed.end() == f"{FORBIDDEN}: {end}"


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
