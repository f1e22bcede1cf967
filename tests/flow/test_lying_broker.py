"""The daemon as a process, at a broker that lies, and at one without limits: nothing lost, and it goes on by itself."""

import asyncio
import json
from pathlib import Path

import asyncpg
from mqtt5 import ConnAckPacket, ConnectPacket, PubAckPacket, PublishPacket, QoS, SubAckPacket, SubscribePacket

from daemon.readings import PAYLOAD_BYTES_MAX
from dev.broker import PrivateBroker
from dev.house import House, eventually
from dev.publisher import Publisher
from tests.test_subscriber import GRANTED, NOT_UTF8, SUBSCRIBED, Peer, ScriptedBroker, broker_with, sending, welcome


def reading(number: int, *, duplicate: bool = False) -> PublishPacket:
    """The reading of a meter of its own, with its number as packet id."""
    payload = json.dumps({"kwhConsumedAc": number, "voltage": 230, "timestamp": 1_767_323_045 + number}).encode()
    topic = f"meters/m-{number}/reading"
    return PublishPacket(topic, payload, qos=QoS.AT_LEAST_ONCE, packet_id=number, duplicate=duplicate)


async def started(house: House, broker: ScriptedBroker) -> None:
    await asyncio.to_thread(house.start)
    await eventually(lambda: connections(broker, 1))


async def connections(broker: ScriptedBroker, count: int) -> bool:
    return len(broker.heard) >= count


async def test_what_came_before_a_lie_is_stored_and_only_what_is_stored_is_ever_acknowledged(
    tmp_path: Path, broker: PrivateBroker, database_url: str, database: asyncpg.Connection
) -> None:
    acknowledged: list[int] = []
    too_early: list[int] = []

    async def lying(peer: Peer) -> None:
        await welcome(peer)
        await peer.send(*(reading(n) for n in range(1, 51)), b"\0\0", *(reading(n) for n in range(51, 61)))

    async def honest(peer: Peer) -> None:
        assert isinstance(await peer.receive(), ConnectPacket)
        await peer.send(ConnAckPacket(session_present=True))
        assert isinstance(await peer.receive(), SubscribePacket)
        await peer.send(*(reading(n, duplicate=n <= 50) for n in range(1, 61)), SUBSCRIBED)
        while True:
            packet = await peer.receive()
            if isinstance(packet, PubAckPacket):
                query = "SELECT count(*) FROM meter_reading WHERE meter_id = $1"
                if not await database.fetchval(query, f"m-{packet.packet_id}"):
                    too_early.append(packet.packet_id)
                acknowledged.append(packet.packet_id)

    async with broker_with(lying, honest) as lies:
        settings = {"MQTT_URL": f"mqtt://127.0.0.1:{lies.port}", "RETENTION_DAYS": "0"}
        house = House(tmp_path, broker, database_url, **settings)
        await started(house, lies)
        try:
            books = await house.settled(110)

            async def all_acknowledged() -> bool:
                return len(acknowledged) == 60

            await eventually(all_acknowledged)
        finally:
            await asyncio.to_thread(house.daemon.stop)
    assert acknowledged == list(range(1, 61))
    assert too_early == []
    assert not any(isinstance(packet, PubAckPacket) for packet in lies.heard[0])
    assert (books.received, books.stored, books.duplicate, books.unaccounted) == (110, {"meter": 60}, 50, 0)
    assert await database.fetchval("SELECT count(*) FROM meter_reading") == 60
    assert "the broker sent what MQTT 5 forbids: Invalid PacketType value: 0" in house.daemon.log.read_text()


async def test_after_one_lie_upon_another_it_serves_the_first_honest_connection(
    tmp_path: Path, broker: PrivateBroker, database_url: str, database: asyncpg.Connection
) -> None:
    async def too_few(peer: Peer) -> None:
        await peer.receive()
        await peer.send(ConnAckPacket())
        await peer.receive()
        await peer.send(SubAckPacket(1, [GRANTED]))

    # The first connection is a good one for long enough to be ready on.
    lies = [sending(reading(1), NOT_UTF8), too_few, sending(reading(1), reading(1))]
    async with broker_with(*lies, sending(reading(1), reading(2))) as lying:
        settings = {"MQTT_URL": f"mqtt://127.0.0.1:{lying.port}", "RETENTION_DAYS": "0"}
        house = House(tmp_path, broker, database_url, **settings)
        await started(house, lying)
        try:
            await eventually(lambda: connections(lying, 4))
            await house.settled(4)
        finally:
            await asyncio.to_thread(house.daemon.stop)
    assert await database.fetchval("SELECT count(*) FROM meter_reading") == 2
    log = house.daemon.log.read_text()
    for line in (
        "the broker sent what MQTT 5 forbids: text that is not UTF-8",
        "the broker answered 1 of 2 subscriptions",
        "the broker sent what MQTT 5 forbids: the packet id 1 again, before it was acknowledged",
    ):
        assert line in log


async def test_a_message_beyond_every_limit_is_kept_as_too_large_and_does_not_stop_the_others(
    tmp_path: Path, database_url: str, database: asyncpg.Connection
) -> None:
    broker = PrivateBroker(tmp_path / "mosquitto", {"max_packet_size": None})
    broker.start()
    house = House(tmp_path, broker, database_url, RETENTION_DAYS="0")
    await asyncio.to_thread(house.start)
    try:
        huge = (reading(1).topic, b" " * 40 * PAYLOAD_BYTES_MAX)
        good = [(each.topic, each.payload) for each in (reading(2), reading(3))]
        await Publisher(broker.port, "device").publish([good[0], huge, good[1]])
        books = await house.settled(3)
    finally:
        await asyncio.to_thread(house.daemon.stop)
        broker.process.stop()
    assert (books.stored, books.rejected, books.unaccounted) == ({"meter": 2}, {"too_large": 1}, 0)
    kept = await database.fetchrow("SELECT topic, length(payload) AS length FROM rejection")
    assert kept["topic"] == reading(1).topic
    assert PAYLOAD_BYTES_MAX < kept["length"] <= 2 * PAYLOAD_BYTES_MAX
    assert "a message is too large, only its start is kept" in house.daemon.log.read_text()
