"""The subscriber: one MQTT 5 session on the `mqtt5` codec, over an asyncio protocol.

Rules:
- The session outlives the connection (clean start off, long expiry, a client id of its own), so the broker keeps what
  is published while nobody listens. The subscription is made again at every connect, in case the broker forgot.
- It asks for QoS 1 only. What is published with QoS 2 then comes with QoS 1, which is enough: the table knows
  duplicates.
- A PUBLISH is acknowledged when `acknowledge` is called with its packet id, by whoever stored it, and in the order of
  arrival [MQTT-4.6.0-2]. Never before, never on another connection: ids mean nothing beyond their own.
- A PUBACK never carries an error code: the broker would take it for an acknowledgement.
- No Maximum Packet Size is announced: the broker would drop what is larger without a word. Of a PUBLISH that is larger
  than anybody wants, the start is taken and the rest is read past. To end the connection over it would help nobody:
  the broker would send it again, for ever, and all others would wait behind it.
- Anything that the specification forbids the broker to send ends the connection, and a new one is made, for ever. What
  came before it is taken; nothing behind it is. The Receive Maximum is the exception: Mosquitto exceeds it.
- Memory is bounded by `pause` for what is taken, by PACKET_BYTES_MAX for what is not complete yet, and by
  UNSENT_BYTES_MAX for what the broker does not read.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeAlias, cast
from urllib.parse import unquote, urlsplit

import mqtt5
import structlog
from mqtt5 import (
    ConnAckPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    PingRespPacket,
    PublishPacket,
    QoS,
    RetainHandling,
    SubAckPacket,
    SubAckReasonCode,
    TopicFilter,
    UnsubAckPacket,
)
from msgspec import Struct

from daemon.backoff import Backoff
from daemon.metrics import Metrics
from sql.tls import BROKER, in_words

log = structlog.get_logger("fleetwatt.subscriber")

SESSION_EXPIRY_S = 30 * 24 * 3600
KEEP_ALIVE_S = 30.0
CONNECT_TIMEOUT_S = 10.0
FIRST_RETRY_S = 0.2
LONGEST_RETRY_S = 15.0
LASTING_S = 5.0
"""A connection that held for this long was a good one."""
SUBACK_TIMEOUT_S = 60.0
"""Without SUBACK and without a message. While there are messages the answer may wait behind what the broker kept."""
CLOSE_TIMEOUT_S = 1.0
"""What is said in parting may take this long to be sent, to a broker that perhaps reads no more."""
PACKET_BYTES_MAX = 5 + 2 * 1024 * 1024
"""A header and twice the payload that is not too large, so that what is cut off here is too large for certain."""
UNSENT_BYTES_MAX = 1024 * 1024
"""Four times the PUBACKs of all the messages that can be under way. A broker that lets more wait does not read."""
TOPICS = ("meters/#", "vehicles/#")
"""Wider than the contract's topics, so that a device with a mistaken topic is seen as `bad_topic` and not ignored."""

FIRST_ERROR_CODE = 0x80
"""MQTT 5's reason codes from here on are failures."""

_SUBSCRIBE_PACKET_ID, _UNSUBSCRIBE_PACKET_ID = 1, 2  # the only packets of ours that have an id
_PUBLISH = 3
_SHOWN_MAX = 200
"""Characters of what others say that are logged; MQTT's texts may have 65,535."""


class BrokerError(Exception):
    """The broker refused us or broke the protocol."""


class Broker(Struct, frozen=True):
    """Where the broker is and who we are to it."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    username: str | None
    password: bytes | None
    client_id: str
    share_group: str | None
    receive_maximum: int

    @property
    def address(self) -> str:
        """Host and port, for logs."""
        return f"{self.host}:{self.port}"

    @property
    def topic_filters(self) -> list[str]:
        """What is subscribed to; daemons of one share group divide the messages among them."""
        prefix = f"$share/{self.share_group}/" if self.share_group else ""
        return [prefix + topic for topic in TOPICS]


def broker_from_url(
    url: str, *, tls: ssl.SSLContext | None, client_id: str, share_group: str | None, receive_maximum: int
) -> Broker:
    """Read `mqtt://user:password@host:port` or `mqtts://…`; user and password may be percent-encoded."""
    parts = urlsplit(url)
    secure = parts.scheme == "mqtts"
    return Broker(
        host=parts.hostname or "localhost",
        port=parts.port or (8883 if secure else 1883),
        tls=tls if secure else None,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password).encode() if parts.password else None,
        client_id=client_id,
        share_group=share_group,
        receive_maximum=receive_maximum,
    )


Intake: TypeAlias = "Callable[[Session, list[PublishPacket]], None]"
"""Takes what one read from the socket delivered. Must not raise and must not block."""


class Session(asyncio.Protocol):
    """One connection to the broker, from its CONNECT to its end."""

    def __init__(self, broker: Broker, intake: Intake, metrics: Metrics) -> None:
        loop = asyncio.get_running_loop()
        self.connack: asyncio.Future[ConnAckPacket] = loop.create_future()
        self.suback: asyncio.Future[SubAckPacket] = loop.create_future()
        self.unsuback: asyncio.Future[UnsubAckPacket] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.heard_at_s = self.taken_at_s = self.sent_at_s = time.monotonic()
        self.paused = False
        self.answered = asyncio.Event()
        """Every `ping` was answered. An answer comes behind all that the broker had to send."""
        self._pings = self._pongs = 0
        self._broker = broker
        self._intake: Intake | None = intake
        self._metrics = metrics
        self._transport: asyncio.Transport | None = None
        self._is_accepted = False
        self._is_subscribing = self._is_unsubscribing = False
        self._unacknowledged: set[int] = set()
        self._under_way = 0
        self._rest = bytearray()
        self._rest_needed = 0
        self._to_skip = 0
        self._end_reason: Exception | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # TCP and TLS give no other
        self._send(
            mqtt5.ConnectPacket(
                self._broker.client_id,
                username=self._broker.username,
                password=self._broker.password,
                clean_start=False,
                session_expiry_interval=SESSION_EXPIRY_S,
                keep_alive=int(KEEP_ALIVE_S),
                receive_max=self._broker.receive_maximum,
            ).write()
        )

    def data_received(self, data: bytes) -> None:
        if self._end_reason is not None:
            return
        self.heard_at_s = time.monotonic()
        publishes: list[PublishPacket] = []
        fault = ""
        try:
            self._read(data, publishes)
        except Exception as error:
            fault = str(error) or type(error).__name__
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            fault = f"text that is not UTF-8, which makes the codec panic ({error})"
        if publishes and self._intake is not None:
            self.taken_at_s = self.heard_at_s
            self._metrics.messages_received.inc(len(publishes))
            self._intake(self, publishes)
        if fault:
            self._break(f"the broker sent what MQTT 5 forbids: {fault}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._intake = None
        reason = self._end_reason or exc or BrokerError("the broker closed the connection")
        for future in (self.connack, self.suback, self.unsuback, self.ended):
            if not future.done():
                future.set_exception(reason)
                future.exception()  # not every one is waited for; the reason is told by `ended`

    # What the rest of the daemon calls.

    def acknowledge(self, packet_ids: list[int]) -> None:
        """Send PUBACKs, in this order; nothing happens once the connection is gone, since the broker sends again."""
        if self._transport is None or not packet_ids:
            return
        self._unacknowledged.difference_update(packet_ids)
        self._under_way -= len(packet_ids)
        self._send(b"".join([b"\x40\x02" + packet_id.to_bytes(2, "big") for packet_id in packet_ids]))
        self._metrics.messages_acknowledged.inc(len(packet_ids))

    def subscribe(self) -> None:
        """Send SUBSCRIBE; `suback` has the answer."""
        filters = [
            TopicFilter(
                pattern,
                max_qos=QoS.AT_LEAST_ONCE,
                retain_as_published=False,
                # A retained reading is an old one: wanted once, when the session is new, and never again.
                retain_handling=RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS,
            )
            for pattern in self._broker.topic_filters
        ]
        self._is_subscribing = True
        self._send(mqtt5.SubscribePacket(_SUBSCRIBE_PACKET_ID, filters).write())

    def unsubscribe(self, topic_filters: list[str]) -> None:
        """Send UNSUBSCRIBE; `unsuback` has the answer. What waits in the session still comes, and nothing new."""
        self._is_unsubscribing = True
        self._send(mqtt5.UnsubscribePacket(_UNSUBSCRIBE_PACKET_ID, topic_filters).write())

    def ping(self) -> None:
        """Send PINGREQ."""
        self._pings += 1
        self.answered.clear()
        self._send(mqtt5.PingReqPacket().write())

    def stop_intake(self) -> None:
        """Take nothing more; acknowledgements still go out."""
        self._intake = None

    def pause(self) -> None:
        """Read nothing more from the socket until `resume`: the broker holds the rest."""
        if self._transport is not None and not self.paused:
            self._transport.pause_reading()
        self.paused = True

    def resume(self) -> None:
        """Read again."""
        if self._transport is not None and self.paused:
            self.heard_at_s = self.taken_at_s = time.monotonic()
            self._transport.resume_reading()
        self.paused = False

    def disconnect(self, *, forget: bool = False) -> None:
        """Say good-bye and close, once what was written is out. The broker keeps the session, or forgets it."""
        if self._transport is not None:
            self._send(DisconnectPacket(session_expiry_interval=0 if forget else None).write())
            self._close()

    def abort(self, reason: str) -> None:
        """Cut the connection; where it is ending already, for the reason that it has."""
        self._end_reason = self._end_reason or BrokerError(reason)
        if self._transport is not None:
            self._transport.abort()

    # Inside.

    def _read(self, data: bytes, publishes: list[PublishPacket]) -> None:
        """Handle the packets that are complete with this, and collect the PUBLISH packets among them."""
        buffer = self._join(data)
        at, end = 0, len(buffer)
        try:
            while at < end and self._end_reason is None:
                packet, size = mqtt5.read(buffer[at:])
                at += size
                if isinstance(packet, PublishPacket):
                    self._check(packet)
                    publishes.append(packet)
                else:
                    self._handle(packet)
        except IndexError:  # the last packet is not complete yet
            self._keep(buffer[at:], publishes)

    def _join(self, data: bytes) -> memoryview:
        """What is to be looked at now: nothing, as long as the packet that began earlier cannot be complete."""
        if self._to_skip:
            skipped = min(self._to_skip, len(data))
            self._to_skip -= skipped
            return memoryview(data)[skipped:]
        if not self._rest:
            return memoryview(data)
        self._rest += data
        if len(self._rest) < self._rest_needed:
            return memoryview(b"")
        joined, self._rest = self._rest, bytearray()
        return memoryview(joined)

    def _keep(self, rest: memoryview, publishes: list[PublishPacket]) -> None:
        """Keep the start of a packet until it is complete, and no more of it than PACKET_BYTES_MAX."""
        size = _packet_bytes(rest)
        if size > PACKET_BYTES_MAX:
            if rest[0] >> 4 != _PUBLISH:
                raise BrokerError(f"a packet of {size} bytes that is no message")
            if len(rest) >= PACKET_BYTES_MAX:
                packet = _start_of(rest[:PACKET_BYTES_MAX])
                self._check(packet)
                log.warning(
                    "a message is too large, only its start is kept", topic=packet.topic[:_SHOWN_MAX], packet_bytes=size
                )
                publishes.append(packet)
                self._to_skip = size - len(rest)
                return
        self._rest = bytearray(rest)
        self._rest_needed = min(size, PACKET_BYTES_MAX)

    def _check(self, packet: PublishPacket) -> None:
        if not self._is_accepted:
            raise BrokerError("a message before CONNACK")
        if not packet.topic:
            raise BrokerError("a topic alias, which was not allowed")
        packet_id = packet.packet_id
        if packet_id is None:
            return
        if packet.qos == QoS.EXACTLY_ONCE:
            raise BrokerError("a message of QoS 2 where QoS 1 was granted")
        if packet_id == 0:
            raise BrokerError("the packet id 0")
        # Two PUBACKs with one id: the second could acknowledge a third message, which is not stored yet. But Mosquitto,
        # which exceeds the Receive Maximum, can have more messages under way than there are ids. It then takes each
        # PUBACK for the oldest message of that id, which is the one that is meant.
        if packet_id in self._unacknowledged and self._under_way < self._broker.receive_maximum:
            raise BrokerError(f"the packet id {packet_id} again, before it was acknowledged")
        self._unacknowledged.add(packet_id)
        self._under_way += 1

    def _handle(self, packet: mqtt5.Packet) -> None:
        match packet:
            case ConnAckPacket() if not self.connack.done():
                self._is_accepted = int(packet.reason_code) < FIRST_ERROR_CODE
                self.connack.set_result(packet)
            case SubAckPacket() if self._is_subscribing and not self.suback.done():
                if packet.packet_id != _SUBSCRIBE_PACKET_ID:
                    raise BrokerError(f"a SUBACK for {packet.packet_id} where {_SUBSCRIBE_PACKET_ID} was asked")
                self.suback.set_result(packet)
            case UnsubAckPacket() if self._is_unsubscribing and not self.unsuback.done():
                if packet.packet_id != _UNSUBSCRIBE_PACKET_ID:
                    raise BrokerError(f"an UNSUBACK for {packet.packet_id} where {_UNSUBSCRIBE_PACKET_ID} was asked")
                self.unsuback.set_result(packet)
            case PingRespPacket():
                self._pongs += 1
                if self._pongs == self._pings:
                    self.answered.set()
            case DisconnectPacket():
                self._end_reason = BrokerError(
                    f"the broker disconnected us: {packet.reason_code.name}{_detail_of(packet)}"
                )
                self._close()  # a broker that forgets to close must not hold us up
            case _:
                raise BrokerError(f"an unexpected {type(packet).__name__}")

    def _break(self, reason: str) -> None:
        self._intake = None
        self._end_reason = BrokerError(reason)
        self._send(DisconnectPacket(reason_code=DisconnectReasonCode.PROTOCOL_ERROR).write())
        self._close()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            # Closing waits until everything is sent, which to a broker that does not read is never.
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)

    def _send(self, data: bytes) -> None:
        if self._transport is None:
            return
        self._transport.write(data)
        self.sent_at_s = time.monotonic()
        if self._transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self.abort("the broker does not read what is sent to it")


def _packet_bytes(start: memoryview) -> int:
    """How long the packet is that begins so; 0 as long as its length has not come."""
    length = 0
    for n, byte in enumerate(start[1:5]):
        length |= (byte & 0x7F) << 7 * n
        if byte < 0x80:
            return 2 + n + length
    return 0


def _start_of(start: memoryview) -> PublishPacket:
    """A PUBLISH of which only the start is there. Its payload is what follows the packet id: properties come first.

    They are left where they are because they may be what is so large, and may not end here.
    """
    qos, retain = start[0] >> 1 & 3, bool(start[0] & 1)
    topic_at = 7  # behind the type, four bytes of the packet's length and two of the topic's
    topic_end = topic_at + int.from_bytes(start[5:7], "big")
    payload_at = topic_end + 2 if qos else topic_end
    return PublishPacket(
        str(start[topic_at:topic_end], "utf-8"),
        bytes(start[payload_at:]),
        qos=QoS(qos),
        retain=retain,
        packet_id=int.from_bytes(start[topic_end:payload_at], "big") if qos else None,
    )


def _detail_of(packet: ConnAckPacket | DisconnectPacket) -> str:
    """What the broker says beside the code."""
    elsewhere = packet.server_reference and f"it refers us to {packet.server_reference}"
    said = "; ".join(text[:_SHOWN_MAX] for text in (packet.reason_str, elsewhere) if text)
    return f" ({said})" if said else ""


class Subscriber:
    """Keeps a session with the broker for as long as it runs."""

    def __init__(self, broker: Broker, intake: Intake, metrics: Metrics, *, leaving: bool = False) -> None:
        """`leaving` takes what waits in the session, and nothing new."""
        self._broker = broker
        self._intake = intake
        self._metrics = metrics
        self._leaving = leaving
        self._forgetting = False
        self._session: Session | None = None
        self._stopping = False
        self._paused = False
        self._had_session = False
        self._keep_alive_s = KEEP_ALIVE_S
        self.subscribed = False

    @property
    def broker_address(self) -> str:
        """Host and port."""
        return self._broker.address

    async def run(self) -> None:
        """Connect, subscribe, and do so again whenever the connection ends, until it ends after `stop_intake`."""
        backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        while True:
            try:
                await self._hold_session(backoff)
            except (BrokerError, OSError, EOFError) as error:
                if self._stopping:
                    return
                delay_s = backoff.next_s()
                log.warning(
                    "broker away, trying again",
                    broker=self._broker.address,
                    error=in_words(error, BROKER),
                    in_s=round(delay_s, 1),
                )
                await asyncio.sleep(delay_s)

    def pause(self) -> None:
        """Take nothing more until `resume`, on this connection or the next."""
        self._paused = True
        if self._session is not None:
            self._session.pause()

    def resume(self) -> None:
        """Take messages again."""
        self._paused = False
        if self._session is not None:
            self._session.resume()

    def stop_intake(self) -> None:
        """Take nothing more, ever; what was taken can still be acknowledged."""
        self._stopping = True
        if self._session is not None:
            self._session.stop_intake()

    async def has_sent_all(self) -> bool:
        """Whether the broker said, now, that it has nothing more to send. Only of use when leaving."""
        session = self._session
        if session is None or not session.unsuback.done():
            return False
        session.ping()
        answer = asyncio.create_task(session.answered.wait(), name="PINGRESP")
        either: list[asyncio.Future[Any]] = [answer, session.ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        answer.cancel()
        return session.answered.is_set() and not session.ended.done()

    def forget(self) -> None:
        """Have the broker end the session, and not only the connection, with `disconnect`."""
        self._forgetting = True

    async def disconnect(self) -> None:
        """End the connection in good order, after `stop_intake`; the broker keeps the session, but for `forget`."""
        if self._session is not None:
            self._session.disconnect(forget=self._forgetting)
            await asyncio.wait([self._session.ended], timeout=1)

    async def _hold_session(self, backoff: Backoff) -> None:
        """One connection, from its start to its end, which is an exception unless we asked for it."""
        session = await self._connect()
        self._session = session
        watch = asyncio.create_task(self._keep_alive(session), name="MQTT keep-alive")
        connected_at_s = time.monotonic()
        try:
            await (self._unsubscribe(session) if self._leaving else self._subscribe(session))
            await session.ended
        finally:
            # Not at once: two daemons that take one session from each other must not do so ever faster.
            if time.monotonic() - connected_at_s >= LASTING_S:
                backoff.reset()
            watch.cancel()
            session.abort("given up")
            self._session = None
            if self.subscribed:
                self.subscribed = False
                self._metrics.mqtt_subscribed.set(0)
                self._metrics.mqtt_disconnections.inc()

    async def _connect(self) -> Session:
        """A connection that the broker accepted."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                session, connack = await self._knock()
        except TimeoutError:
            raise BrokerError(f"the broker did not answer within {CONNECT_TIMEOUT_S:g} s") from None
        if int(connack.reason_code) >= FIRST_ERROR_CODE:
            session.abort("refused")
            raise BrokerError(f"the broker refused the connection: {connack.reason_code.name}{_detail_of(connack)}")
        if lack := _lack_of(connack, self._broker):
            session.disconnect()
            raise BrokerError(f"the broker cannot serve us: {lack}")
        self._metrics.mqtt_connections.inc()
        # A broker may want to hear from us more often. That it need not would be no reason to notice its death later.
        self._keep_alive_s = min(connack.server_keep_alive or KEEP_ALIVE_S, KEEP_ALIVE_S)
        self._tell_of_session(connack)
        if self._paused:
            session.pause()
        if self._stopping:
            session.stop_intake()
        return session

    async def _knock(self) -> tuple[Session, ConnAckPacket]:
        """Connect and wait for the answer."""
        _, session = await asyncio.get_running_loop().create_connection(
            lambda: Session(self._broker, self._intake, self._metrics),
            self._broker.host,
            self._broker.port,
            ssl=self._broker.tls,
        )
        try:
            return session, await session.connack
        except BaseException:
            session.abort("no CONNACK")
            raise

    def _tell_of_session(self, connack: ConnAckPacket) -> None:
        event = {"broker": self._broker.address, "client_id": self._broker.client_id}
        if connack.session_present:
            log.info("connected to the broker, the session is still there", **event)
        elif self._had_session:
            log.error(
                "connected to the broker, which has lost the session: what was published meanwhile is lost; "
                "see docs/broker.md on persistence",
                **event,
            )
        else:
            log.info("connected to the broker with a new session", **event)
        self._had_session = True
        if connack.max_qos == QoS.AT_MOST_ONCE:
            log.error("the broker knows only QoS 0: messages will be lost; see docs/broker.md", **event)
        expiry_s = connack.session_expiry_interval
        if expiry_s is not None and expiry_s < SESSION_EXPIRY_S:
            log.warning("the broker will keep the session for a shorter time than asked", expiry_s=expiry_s, **event)

    async def _unsubscribe(self, session: Session) -> None:
        """Unsubscribe from everything, which leaves in the session what waits there."""
        session.unsubscribe(self._broker.topic_filters)
        unsuback = await session.unsuback
        refused = [code.name for code in unsuback.reason_codes if int(code) >= FIRST_ERROR_CODE]
        if refused:
            session.disconnect()
            raise BrokerError(f"the broker refused to end the subscriptions: {', '.join(refused)}")
        log.info("unsubscribed, nothing new comes any more", topics=list(TOPICS))

    async def _subscribe(self, session: Session) -> None:
        """Subscribe; the answer may come late, since a broker may first send what it kept."""
        session.subscribe()
        if self._broker.share_group:
            # A session of a time without a group would still get everything, beside its share. Not before it has one.
            session.unsubscribe(list(TOPICS))
        suback = await session.suback
        topics = TOPICS  # as they are without the share group, whose name is a secret
        if len(suback.reason_codes) != len(topics):
            session.disconnect()
            raise BrokerError(f"the broker answered {len(suback.reason_codes)} of {len(topics)} subscriptions")
        for topic, code in zip(topics, suback.reason_codes, strict=True):
            if int(code) >= FIRST_ERROR_CODE:
                session.disconnect()
                raise BrokerError(f"the broker refused the subscription to {topic}: {code.name}; see docs/broker.md")
            if code == SubAckReasonCode.GRANTED_QOS_AT_MOST_ONCE:
                log.warning("the broker grants only QoS 0: messages may be lost", topic=topic)
        self.subscribed = True
        self._metrics.mqtt_subscribed.set(1)
        log.info("subscribed", topics=list(topics), shared=self._broker.share_group is not None)

    async def _keep_alive(self, session: Session) -> None:
        """Ping when there is nothing else to send, and cut a connection on which nothing comes any more."""
        while True:
            await asyncio.sleep(self._keep_alive_s / 4)
            now_s = time.monotonic()
            if now_s - session.sent_at_s >= self._keep_alive_s / 2:
                session.ping()
            # While reading is paused, PINGRESP waits in the socket: silence then means nothing.
            if not session.paused and now_s - session.heard_at_s >= 1.5 * self._keep_alive_s:
                session.abort(f"nothing was heard from the broker for {now_s - session.heard_at_s:.0f} s")
                return
            is_answered = session.unsuback.done() if self._leaving else session.suback.done()
            if not (session.paused or is_answered) and now_s - session.taken_at_s >= SUBACK_TIMEOUT_S:
                session.abort(f"the broker did not answer SUBSCRIBE within {SUBACK_TIMEOUT_S:g} s")
                return


def _lack_of(connack: ConnAckPacket, broker: Broker) -> str | None:
    """What a broker that accepted us does not offer and we cannot do without."""
    if connack.assigned_client_id not in (None, broker.client_id):
        return f"it calls us {connack.assigned_client_id!a}, and another client id has another session"
    if not connack.wildcard_subscription_available:
        return "it knows no wildcards in subscriptions"
    if broker.share_group and not connack.shared_subscription_available:
        return "it knows no shared subscriptions, and MQTT_SHARE_GROUP is set"
    return None
