"""Fuzz target: what the subscriber makes of a broker's bytes. The input is how far the session is, a place to cut, and
the bytes. They are fed whole, cut in two, and byte by byte, and each time the same must come of it.
"""

import asyncio
import atexit
import functools
import re
from typing import Any

import mqtt5
from mqtt5 import (
    AuthPacket,
    ConnAckPacket,
    ConnAckReasonCode,
    DisconnectPacket,
    DisconnectReasonCode,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    SubAckPacket,
    SubAckReasonCode,
)

from daemon.accounts import Accounts
from daemon.metrics import Metrics
from daemon.subscriber import Session, broker_from_url
from dev.fuzz_target import Target, expect

_BROKER = broker_from_url("mqtt://h", tls=None, client_id="c", share_group=None, receive_maximum=10)
_METRICS = Metrics(Accounts(), lambda: 0.0)
_GRANTED = SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE
_CONNACK = ConnAckPacket().write()
_SUBACK = SubAckPacket(1, [_GRANTED, _GRANTED]).write()
_SAYS_GOODBYE = tuple(
    DisconnectPacket(reason_code=code).write()
    for code in (DisconnectReasonCode.NORMAL_DISCONNECTION, DisconnectReasonCode.PROTOCOL_ERROR)
)


class _Transport(asyncio.Transport):
    """Remembers what was written, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True


class _Feed:
    """One session that is fed."""

    def __init__(self, stage: int) -> None:
        self.transport = _Transport()
        self.publishes: list[PublishPacket] = []
        self._was_closed = False
        self.session = Session(_BROKER, self._take, _METRICS)
        self.session.connection_made(self.transport)
        if stage >= 1:
            self.session.data_received(_CONNACK)
        if stage >= 2:
            self.session.subscribe()
        if stage >= 3:
            self.session.data_received(_SUBACK)
        self.transport.written.clear()

    def _take(self, session: Session, publishes: list[PublishPacket]) -> None:
        expect(session is self.session and bool(publishes), "the intake is called with messages of this session")
        expect(not self._was_closed, "nothing is taken after the end", publishes)
        self.publishes += publishes

    def feed(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._was_closed = self.transport.is_closed
            self.session.data_received(piece)

    def outcome(self) -> tuple[Any, ...]:
        """All that came of it, and the end of the session."""
        session = self.session
        connack = session.connack.result().reason_code if session.connack.done() else None
        suback = session.suback.result().reason_codes if session.suback.done() else None
        session.connection_lost(None)
        messages = [(each.topic, each.payload, each.qos, each.packet_id, each.retain) for each in self.publishes]
        end = str(session.ended.exception())
        return messages, connack, suback, self.transport.is_closed, self.transport.written, end


def check(data: bytes) -> None:
    """Feed the bytes to three sessions."""
    _loop().run_until_complete(_check(data))


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One for all: to make one takes longer than a check."""
    loop = asyncio.new_event_loop()
    atexit.register(loop.close)
    return loop


async def _check(data: bytes) -> None:
    stage, cut, stream = data[0] & 3 if data else 0, data[1] if len(data) > 1 else 0, data[2:]
    whole = _Feed(stage)
    whole.feed([stream])
    _check_messages(whole, stream)
    _check_rest(whole)
    expected = whole.outcome()
    written = expected[4]
    expect(
        not written or (len(written) == 1 and written[0] in _SAYS_GOODBYE), "nothing but a good-bye is said", written
    )
    for pieces in ([stream[:cut], stream[cut:]], [stream[at : at + 1] for at in range(len(stream))]):
        other = _Feed(stage)
        other.feed([piece for piece in pieces if piece])
        found = other.outcome()
        expect(found == expected, "where the stream is cut makes no difference", expected, found)


def _check_messages(fed: _Feed, stream: bytes) -> None:
    ids = [packet.packet_id for packet in fed.publishes if packet.packet_id is not None]
    expect(len(set(ids)) == len(ids), "no id comes twice before it is acknowledged", ids)
    for packet in fed.publishes:
        expect(fed.session.connack.done(), "no message comes before CONNACK", packet)
        expect(bool(packet.topic) and packet.topic.encode() in stream, "a topic is what came", packet.topic)
        expect(packet.payload in stream, "a payload is what came", packet.payload)
        expect(packet.qos in (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE), "no message has QoS 2", packet.qos)
        expect((packet.packet_id is None) == (packet.qos == QoS.AT_MOST_ONCE), "QoS 1 has an id", packet.packet_id)
        expect(packet.packet_id != 0, "no id is 0", packet.packet_id)


def _check_rest(fed: _Feed) -> None:
    """What is waited for is the rest of one packet, and that is yet to come: else nothing more would ever be read."""
    rest = bytes(fed.session._rest)
    if rest and not fed.transport.is_closed:
        whole = re.match(rb"(?s).([\x80-\xff]{0,3}[\x00-\x7f])", rest)
        size = sum((byte & 0x7F) << 7 * n for n, byte in enumerate(whole[1])) if whole else len(rest)
        expect(len(rest) < (whole.end() if whole else 5) + size, "only an incomplete packet waits", rest)


def _seeds() -> tuple[bytes, ...]:
    topic, names = "meters/m-1/reading", [("a", "b"), ("", "\u00e4")]
    publishes: list[mqtt5.Packet] = [
        PublishPacket(topic, b'{"voltage":230}', qos=QoS.AT_LEAST_ONCE, packet_id=300),
        PublishPacket(topic, b"", retain=True),
        PublishPacket(topic, b"x", qos=QoS.AT_LEAST_ONCE, packet_id=300, duplicate=True),
        PublishPacket(topic, b"x", qos=QoS.EXACTLY_ONCE, packet_id=1),
        PublishPacket("", b"x", topic_alias=1),
        PublishPacket(topic, b"x" * 200, message_expiry_interval=1, content_type="a/b", payload_format_indicator=1),
        PublishPacket(topic, b"x", response_topic="r", correlation_data=b"\0", user_properties=names),
        PublishPacket(topic, b"x", subscription_ids=[1, 268435455], topic_alias=7),
    ]
    others: list[mqtt5.Packet] = [
        ConnAckPacket(session_present=True, session_expiry_interval=1, assigned_client_id="x", server_keep_alive=0),
        ConnAckPacket(reason_code=ConnAckReasonCode.USE_ANOTHER_SERVER, server_reference="h", reason_str="s"),
        ConnAckPacket(
            receive_max=1, topic_alias_max=9, max_qos=QoS.AT_MOST_ONCE, max_packet_size=20, response_info="r"
        ),
        ConnAckPacket(authentication_method="m", authentication_data=b"d", user_properties=names),
        ConnAckPacket(
            retain_available=False,
            wildcard_subscription_available=False,
            subscription_id_available=False,
            shared_subscription_available=False,
        ),
        SubAckPacket(1, [_GRANTED, SubAckReasonCode.NOT_AUTHORIZED], reason_str="s", user_properties=names),
        SubAckPacket(2, []),
        PingRespPacket(),
        DisconnectPacket(reason_code=DisconnectReasonCode.SERVER_MOVED, server_reference="h", reason_str="s"),
        AuthPacket(authentication_method="m", authentication_data=b"d"),
        PubAckPacket(300, reason_str="s"),
    ]
    start = bytes([3, 20])
    made = [start + packet.write() for packet in (*publishes, *others)]
    made += [bytes([0, 3]) + packet.write() for packet in others]
    made.append(start + b"".join(publishes[n].write() for n in (0, 1, 5, 6, 7)))
    made.append(bytes([0, 7]) + _CONNACK + publishes[0].write() + others[8].write() + publishes[1].write())
    made.append(bytes([2, 5]) + publishes[0].write() + _SUBACK + publishes[1].write())
    made.append(start + b"\x30\xff\xff\xff\x7f")
    return tuple(made)


_WORDS = (
    *(
        bytes([kind << 4 | flags])
        for kind, flags in ((2, 0), (3, 0), (3, 2), (3, 3), (9, 0), (13, 0), (14, 0), (15, 0))
    ),
    *(bytes([identifier]) for identifier in (1, 2, 3, 8, 9, 11, 17, 18, 19, 31, 33, 34, 35, 36, 38, 39, 40, 41, 42)),
    b"\xff\xff\xff\x7f",
    b"\x80\x80\x80\x01",
    b"\x00\x12meters/m-1/reading",
    _CONNACK,
    _SUBACK,
)

TARGET = Target(check, _seeds(), _WORDS, bytes_max=768)
