"""A publisher that is never the limit: QoS 1 over a bare MQTT 5 connection, with packets encoded beforehand.

It remembers which messages the broker acknowledged, for those who count afterwards. The simulated hardware uses aiomqtt
instead, as a customer's would.
"""

import asyncio
from collections.abc import Iterable

import mqtt5
from mqtt5 import ConnAckPacket, PubAckPacket, QoS

WINDOW = 2000
"""Messages on their way at once."""


class PublisherError(Exception):
    """The broker refused a message or went away."""


def encode(topic: str, payload: bytes, packet_id: int) -> bytes:
    """One PUBLISH packet of QoS 1."""
    return mqtt5.PublishPacket(topic, payload, qos=QoS.AT_LEAST_ONCE, packet_id=packet_id).write()


class Publisher:
    """One connection; `publish` sends many messages and returns when each is acknowledged."""

    def __init__(self, port: int, client_id: str) -> None:
        self._port = port
        self._client_id = client_id
        self.acknowledged = 0
        """Messages that the broker took, in the order in which they were given."""

    async def publish(self, messages: Iterable[tuple[str, bytes]]) -> int:
        """Publish (topic, payload) pairs and return how many were acknowledged; raises PublisherError or OSError."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(mqtt5.ConnectPacket(self._client_id, clean_start=True, keep_alive=0).write())
            packets = _Packets(reader)
            if not isinstance(await packets.next(), ConnAckPacket):
                raise PublisherError("no CONNACK")
            sent = before = self.acknowledged
            for topic, payload in messages:
                # A packet id is free again when its PUBACK is in, and these come in order.
                writer.write(encode(topic, payload, sent % 65535 + 1))
                sent += 1
                if sent % 500 == 0:
                    await writer.drain()
                while sent - self.acknowledged >= WINDOW:
                    self._take(await packets.next())
            while self.acknowledged < sent:
                self._take(await packets.next())
            writer.write(mqtt5.DisconnectPacket().write())
            await writer.drain()
            return sent - before
        finally:
            writer.close()

    def _take(self, packet: mqtt5.Packet) -> None:
        if not isinstance(packet, PubAckPacket):
            raise PublisherError(f"an unexpected {type(packet).__name__}")
        if int(packet.reason_code) >= 0x80:
            raise PublisherError(f"a message was refused: {packet.reason_code.name}")
        self.acknowledged += 1


class _Packets:
    """Packets from a stream."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._buffer = b""
        self._at = 0

    async def next(self) -> mqtt5.Packet:
        while True:
            try:
                packet, size = mqtt5.read(memoryview(self._buffer)[self._at :])
            except IndexError:
                data = await self._reader.read(1 << 16)
                if not data:
                    raise PublisherError("the broker closed the connection") from None
                self._buffer = self._buffer[self._at :] + data
                self._at = 0
            else:
                self._at += size
                return packet
