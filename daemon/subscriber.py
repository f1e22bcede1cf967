"""The subscriber: one MQTT 5 session on the `mqtt5` codec, over an asyncio protocol.

Rules:
- The session outlives the connection (clean start off, long expiry, a client id of its own), so the broker keeps what
  is published while nobody listens. The subscription is made again at every connect, in case the broker forgot.
- It asks for QoS 1 only. What is published with QoS 2 then comes with QoS 1, which is enough: the table knows
  duplicates.
- A PUBLISH is acknowledged when `acknowledge` is called with its packet id, by whoever stored it, and in the order of
  arrival [MQTT-4.6.0-2]. Never before, never on another connection: ids mean nothing beyond their own.
- A PUBACK never carries an error code: the broker would take it for an acknowledgement.
- No Maximum Packet Size is announced: the broker would drop what is larger without a word.
- Anything that the specification forbids the broker to send ends the connection, and a new one is made, for ever.
  The Receive Maximum is the exception: Mosquitto exceeds it. `pause` is what bounds memory.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import TypeAlias, cast
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
)
from msgspec import Struct

from daemon.backoff import Backoff
from daemon.metrics import Metrics

log = structlog.get_logger("fleetwatt.subscriber")

SESSION_EXPIRY_S = 30 * 24 * 3600
KEEP_ALIVE_S = 30.0
CONNECT_TIMEOUT_S = 10.0
FIRST_RETRY_S = 0.2
LONGEST_RETRY_S = 15.0
LASTING_S = 5.0
"""A connection that held for this long was a good one."""
TOPICS = ("meters/#", "vehicles/#")
"""Wider than the contract's topics, so that a device with a mistaken topic is seen as `bad_topic` and not ignored."""

FIRST_ERROR_CODE = 0x80
"""MQTT 5's reason codes from here on are failures."""

_SUBSCRIBE_PACKET_ID = 1  # the only packet of ours that has an id


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
        self.ended: asyncio.Future[None] = loop.create_future()
        self.heard_at_s = time.monotonic()
        self.sent_at_s = time.monotonic()
        self.paused = False
        self._broker = broker
        self._intake: Intake | None = intake
        self._metrics = metrics
        self._transport: asyncio.Transport | None = None
        self._rest = b""
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
        self.heard_at_s = time.monotonic()
        try:
            publishes = self._read(data)
        except BaseException as error:
            # Whatever it is: a property that is not UTF-8 makes the codec panic, which is not even an Exception.
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self._break(DisconnectReasonCode.PROTOCOL_ERROR, f"the broker sent what MQTT 5 forbids: {error}")
            return
        if publishes and self._intake is not None:
            self._metrics.messages_received.inc(len(publishes))
            self._intake(self, publishes)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._intake = None
        reason = self._end_reason or exc or BrokerError("the broker closed the connection")
        for future in (self.connack, self.suback, self.ended):
            if not future.done():
                future.set_exception(reason)
                future.exception()  # not every one is waited for; the reason is told by `ended`

    # What the rest of the daemon calls.

    def acknowledge(self, packet_ids: list[int]) -> None:
        """Send PUBACKs, in this order; nothing happens once the connection is gone, since the broker sends again."""
        if self._transport is None or not packet_ids:
            return
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
        self._send(mqtt5.SubscribePacket(_SUBSCRIBE_PACKET_ID, filters).write())

    def ping(self) -> None:
        """Send PINGREQ."""
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
            self.heard_at_s = time.monotonic()
            self._transport.resume_reading()
        self.paused = False

    def disconnect(self) -> None:
        """Say good-bye and close, once what was written is out. The broker keeps the session."""
        if self._transport is not None:
            self._send(DisconnectPacket().write())
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Cut the connection."""
        self._end_reason = BrokerError(reason)
        if self._transport is not None:
            self._transport.abort()

    # Inside.

    def _read(self, data: bytes) -> list[PublishPacket]:
        """Handle the complete packets in what was received so far; returns the PUBLISH packets among them."""
        buffer = memoryview(self._rest + data if self._rest else data)
        publishes: list[PublishPacket] = []
        at, end = 0, len(buffer)
        try:
            while at < end:
                packet, size = mqtt5.read(buffer[at:])
                at += size
                if isinstance(packet, PublishPacket):
                    publishes.append(packet)
                else:
                    self._handle(packet)
        except IndexError:  # the last packet is not complete yet
            pass
        self._rest = bytes(buffer[at:])
        self._check(publishes)
        return publishes

    def _check(self, publishes: list[PublishPacket]) -> None:
        for packet in publishes:
            if packet.qos == QoS.EXACTLY_ONCE:
                raise BrokerError("a message of QoS 2 where QoS 1 was granted")
            if not packet.topic:
                raise BrokerError("a topic alias, which was not allowed")

    def _handle(self, packet: mqtt5.Packet) -> None:
        match packet:
            case ConnAckPacket() if not self.connack.done():
                self.connack.set_result(packet)
            case SubAckPacket(packet_id=packet_id) if packet_id == _SUBSCRIBE_PACKET_ID and not self.suback.done():
                self.suback.set_result(packet)
            case PingRespPacket():
                pass
            case DisconnectPacket():
                detail = f" ({packet.reason_str})" if packet.reason_str else ""
                self._end_reason = BrokerError(f"the broker disconnected us: {packet.reason_code.name}{detail}")
                if self._transport is not None:  # a broker that forgets to close must not hold us up
                    self._transport.close()
            case _:
                raise BrokerError(f"an unexpected {type(packet).__name__}")

    def _break(self, code: DisconnectReasonCode, reason: str) -> None:
        self._intake = None
        self._end_reason = BrokerError(reason)
        if self._transport is not None:
            self._send(DisconnectPacket(reason_code=code).write())
            self._transport.close()

    def _send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
            self.sent_at_s = time.monotonic()


class Subscriber:
    """Keeps a session with the broker for as long as it runs."""

    def __init__(self, broker: Broker, intake: Intake, metrics: Metrics) -> None:
        self._broker = broker
        self._intake = intake
        self._metrics = metrics
        self._session: Session | None = None
        self._stopping = False
        self._paused = False
        self._had_session = False
        self._keep_alive_s = KEEP_ALIVE_S
        self.subscribed = False

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
                    error=str(error) or type(error).__name__,
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

    async def disconnect(self) -> None:
        """End the connection in good order, after `stop_intake`; the broker keeps the session."""
        if self._session is not None:
            self._session.disconnect()
            await asyncio.wait([self._session.ended], timeout=1)

    async def _hold_session(self, backoff: Backoff) -> None:
        """One connection, from its start to its end, which is an exception unless we asked for it."""
        session = await self._connect()
        self._session = session
        watch = asyncio.create_task(self._keep_alive(session), name="MQTT keep-alive")
        connected_at_s = time.monotonic()
        try:
            await self._subscribe(session)
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
            detail = f" ({connack.reason_str})" if connack.reason_str else ""
            raise BrokerError(f"the broker refused the connection: {connack.reason_code.name}{detail}")
        self._metrics.mqtt_connections.inc()
        self._keep_alive_s = connack.server_keep_alive or KEEP_ALIVE_S
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

    async def _subscribe(self, session: Session) -> None:
        """Subscribe; the answer may come late, since a broker may first send what it kept."""
        session.subscribe()
        suback = await session.suback
        answers = dict(zip(self._broker.topic_filters, suback.reason_codes, strict=False))
        for topic, code in answers.items():
            if int(code) >= FIRST_ERROR_CODE:
                session.disconnect()
                raise BrokerError(f"the broker refused the subscription to {topic}: {code.name}; see docs/broker.md")
            if code == SubAckReasonCode.GRANTED_QOS_AT_MOST_ONCE:
                log.warning("the broker grants only QoS 0: messages may be lost", topic=topic)
        self.subscribed = True
        self._metrics.mqtt_subscribed.set(1)
        log.info("subscribed", topics=list(answers))

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
