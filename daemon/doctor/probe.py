"""A small MQTT 5 client for the doctor: one connection, read only while somebody waits for something.

It acknowledges nothing unless it is told to, so what a session holds stays there.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import cast

import mqtt5
from mqtt5 import (
    ConnAckPacket,
    DisconnectPacket,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    SubAckPacket,
    TopicFilter,
)

from daemon.subscriber import FIRST_ERROR_CODE

CONNECT_TIMEOUT_S = 5.0
_READ_BYTES = 65536
_OLD_CONNACK = b"\x20\x02"
"""How a CONNACK of MQTT 3 begins: two bytes follow. MQTT 5 has at least three."""


class ProbeError(Exception):
    """The broker refused, closed the connection or sent what cannot be read."""


class RefusedError(ProbeError):
    """The broker answered CONNECT with an error; `code` is MQTT 5's."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ClosedError(ProbeError):
    """The connection ended, and nobody said why."""


class NotMqtt5Error(ProbeError):
    """What answered speaks no MQTT 5."""


class Probe:
    """One connection to a broker, from `open` to the end of its `async with`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connack = ConnAckPacket()
        self.messages: list[PublishPacket] = []
        self.pubacks: dict[int, int] = {}
        """Reason codes by packet id, of what was published."""
        self._reader = reader
        self._writer = writer
        self._rest = b""
        self._connected = False
        self._suback: SubAckPacket | None = None
        self._pongs = 0
        self._packet_id = 0

    @classmethod
    async def open(cls, host: str, port: int, tls: ssl.SSLContext | None) -> "Probe":
        """Connect, without a word of MQTT; raises OSError or TimeoutError."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return cls(*await asyncio.open_connection(host, port, ssl=tls))

    async def __aenter__(self) -> "Probe":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.transport.abort()

    @property
    def tls_object(self) -> ssl.SSLObject | None:
        """The TLS session, where there is one."""
        return cast("ssl.SSLObject | None", self._writer.get_extra_info("ssl_object"))

    async def connect(self, packet: mqtt5.ConnectPacket) -> ConnAckPacket:
        """Send CONNECT and return its answer; raises RefusedError, NotMqtt5Error or ProbeError."""
        self._writer.write(packet.write())
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._until(lambda: self._connected)
        except TimeoutError as error:
            raise ProbeError(f"the broker did not answer CONNECT within {CONNECT_TIMEOUT_S:.0f} s") from error
        except (ClosedError, ConnectionError) as error:
            raise ClosedError("the broker ends the connection without an answer") from error
        code = int(self.connack.reason_code)
        if code >= FIRST_ERROR_CODE:
            raise RefusedError(code, self.connack.reason_code.name)
        return self.connack

    async def subscribe(self, filters: list[TopicFilter]) -> list[int]:
        """Send SUBSCRIBE and return the reason codes."""
        self._suback = None
        self._packet_id += 1
        self._writer.write(mqtt5.SubscribePacket(self._packet_id, filters).write())
        await self._until(lambda: self._suback is not None)
        return [] if self._suback is None else [int(code) for code in self._suback.reason_codes]

    async def publish(self, topic: str, payloads: Sequence[bytes]) -> list[int]:
        """Publish with QoS 1, no more at once than the broker takes; returns the reason codes."""
        ids: list[int] = []
        for payload in payloads:
            await self._until(lambda: len(ids) - len(self.pubacks) < self.connack.receive_max)
            self._packet_id += 1
            ids.append(self._packet_id)
            packet = PublishPacket(topic, payload, qos=QoS.AT_LEAST_ONCE, packet_id=self._packet_id)
            self._writer.write(packet.write())
        await self._until(lambda: len(self.pubacks) == len(ids))
        codes = [self.pubacks[packet_id] for packet_id in ids]
        self.pubacks.clear()
        return codes

    async def collect(self, count: int, silence_s: float, *, acknowledge: bool) -> int:
        """Read until `count` messages are there, or none came for `silence_s`; returns how many there are."""
        done = 0
        while len(self.messages) < count:
            if acknowledge:
                for message in self.messages[done:]:
                    if message.packet_id is not None:
                        self._writer.write(mqtt5.PubAckPacket(message.packet_id).write())
                done = len(self.messages)
            before = len(self.messages)
            try:
                async with asyncio.timeout(silence_s):
                    await self._until(lambda: len(self.messages) > before)  # noqa: B023 - called within this round
            except TimeoutError:
                break
        return len(self.messages)

    async def ping(self) -> None:
        """Come back when the broker has answered all that was sent before."""
        pongs = self._pongs
        self._writer.write(mqtt5.PingReqPacket().write())
        await self._until(lambda: self._pongs > pongs)

    async def leave(self, *, forget: bool) -> None:
        """Say good-bye; `forget` ends the session with it, which otherwise stays as it was agreed at CONNECT."""
        self._writer.write(DisconnectPacket(session_expiry_interval=0 if forget else None).write())
        await self._writer.drain()
        self._writer.close()
        await self._writer.wait_closed()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise ClosedError("the broker closed the connection")
            self._take(data)

    def _take(self, data: bytes) -> None:
        buffer = memoryview(self._rest + data)
        if not self._connected:
            _require_mqtt5(bytes(buffer[:4]))
        at = 0
        while at < len(buffer):
            try:
                packet, size = mqtt5.read(buffer[at:])
            except IndexError:  # not complete yet
                break
            except ValueError as error:
                raise ProbeError(f"the broker sent what MQTT 5 forbids: {error}") from error
            at += size
            self._handle(packet)
        self._rest = bytes(buffer[at:])

    def _handle(self, packet: mqtt5.Packet) -> None:
        match packet:
            case ConnAckPacket():
                self.connack, self._connected = packet, True
            case PublishPacket():
                self.messages.append(packet)
            case PubAckPacket():
                self.pubacks[packet.packet_id] = int(packet.reason_code)
            case SubAckPacket():
                self._suback = packet
            case PingRespPacket():
                self._pongs += 1
            case DisconnectPacket():
                raise ProbeError(f"the broker disconnected us: {packet.reason_code.name}")
            case _:
                raise ProbeError(f"the broker sent an unexpected {type(packet).__name__}")


def _require_mqtt5(start: bytes) -> None:
    if start[:2] == _OLD_CONNACK:
        raise NotMqtt5Error("the broker answers in MQTT 3")
    if start and start[0] != _OLD_CONNACK[0]:
        raise NotMqtt5Error("what answers there speaks no MQTT")
