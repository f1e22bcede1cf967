"""The daemon's session at the broker: the doctor loses neither it nor anything that waits in it."""

import asyncio
import signal
from contextlib import closing

import asyncpg
import mqtt5
import pytest
from mqtt5 import QoS

from daemon.doctor.probe import Probe
from daemon.subscriber import SESSION_EXPIRY_S
from dev.house import eventually
from dev.processes import free_port
from tests.conftest import Connect
from tests.doctor.conftest import StartHouse
from tests.doctor.house import PASSWORDS, House, enter, leave_a_session, trust

MAPPED = pytest.mark.parametrize("mapped", ["true", "false"], ids=["account_is_client_id", "own_client_ids"])


async def publish(house: House, first: int, after: int) -> None:
    """Numbered readings of one device; every third with QoS 0. All that can be is acknowledged when it returns."""
    device = Device(*await asyncio.open_connection("localhost", house.broker.port, ssl=trust(house)))
    async with device:
        await device.connect(mqtt5.ConnectPacket("", username="meter-1", password=PASSWORDS["meter-1"].encode()))
        await device.send(first, after)


class Device(Probe):
    """A publisher that does not wait for one acknowledgement before it sends the next."""

    async def send(self, first: int, after: int) -> None:
        wanted = 0
        for number in range(first, after):
            payload = b'{"kwhConsumedAc":%d,"voltage":230,"timestamp":%d}' % (number, 1_790_000_000 + number)
            wanted += number % 3 > 0
            packet = mqtt5.PublishPacket(
                "meters/meter-1/reading",
                payload,
                qos=QoS.AT_LEAST_ONCE if number % 3 else QoS.AT_MOST_ONCE,
                packet_id=number + 1 if number % 3 else None,
            )
            self._writer.write(packet.write())
            await self._until(lambda: wanted - len(self.pubacks) < 20)  # noqa: B023 - called within this round
        await self._until(lambda: len(self.pubacks) == wanted)
        await self.ping()


async def are_stored(house: House, count: int) -> bool:
    connection = await asyncpg.connect(house.database_url)
    try:
        rows = await connection.fetch("SELECT kwh_consumed_ac FROM meter_reading")
    finally:
        await connection.close()
    assert len({row[0] for row in rows}) == len(rows), "a reading is there twice"
    return len(rows) == count


async def count_connections(house: House) -> int:
    """How often the broker has accepted the daemon's connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(house.environ["METRICS_PORT"]))
    with closing(writer):
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n\r\n")
        text = (await reader.read()).decode()
    return int(
        float(
            next(line.split()[1] for line in text.splitlines() if line.startswith("fleetwatt_mqtt_connections_total"))
        )
    )


@MAPPED
async def test_what_waits_for_an_absent_daemon_waits_on_after_checks(start_house: StartHouse, mapped: str) -> None:
    house = start_house({"use_username_as_clientid": mapped})
    await leave_a_session(house)
    await publish(house, 0, 1500)
    # A daemon that was killed had some of them in its hands, and acknowledged none.
    probe, _ = await enter(house, receive_maximum=100)
    async with probe:
        assert await probe.collect(100, 5, acknowledge=False) >= 100
    for _ in range(3):
        found = await house.check()
        assert found["broker.session"].level == "ok"
        assert found["broker.subscribe"].level == "ok"
    house.start_daemon()
    await eventually(lambda: are_stored(house, 1500))


@MAPPED
async def test_what_comes_while_the_doctor_is_in_the_session_is_kept(
    start_house: StartHouse, mapped: str, connected: Connect
) -> None:
    house = start_house({"use_username_as_clientid": mapped})
    await leave_a_session(house)

    async def check_again_and_again() -> None:
        while True:
            await house.check()

    checking = asyncio.create_task(check_again_and_again())
    try:
        await publish(house, 0, 3000)
    finally:
        checking.cancel()
        await asyncio.wait([checking])
    assert checking.cancelled()
    house.start_daemon()
    qos_1 = sum(1 for number in range(3000) if number % 3)
    connection = await connected(house.database_url)

    async def stored() -> bool:
        rows = await connection.fetch(
            "SELECT kwh_consumed_ac FROM meter_reading WHERE kwh_consumed_ac::integer % 3 > 0"
        )
        return len(rows) == qos_1

    await eventually(stored)


@MAPPED
async def test_a_running_daemon_keeps_its_connection(start_house: StartHouse, mapped: str) -> None:
    house = start_house({"use_username_as_clientid": mapped})
    house.start_daemon()
    async with asyncio.TaskGroup() as group:
        group.create_task(publish(house, 0, 3000))
        for _ in range(3):
            found = await house.check()
            assert found["broker.login"].level == "ok"
    await eventually(lambda: are_stored(house, 3000))
    assert await count_connections(house) == 1


@MAPPED
async def test_even_a_daemon_that_is_not_found_loses_nothing(start_house: StartHouse, mapped: str) -> None:
    """It runs on another machine, say: the check then enters its session and leaves it at once."""
    house = start_house({"use_username_as_clientid": mapped})
    house.start_daemon()
    async with asyncio.TaskGroup() as group:
        group.create_task(publish(house, 0, 3000))
        for _ in range(3):
            await house.check(METRICS_PORT=str(free_port()))

    async def stored() -> bool:
        connection = await asyncpg.connect(house.database_url)
        try:
            missing = await connection.fetchval(
                "SELECT count(*) FROM generate_series(0, 2999) AS n WHERE n % 3 > 0 "
                "AND NOT EXISTS (SELECT FROM meter_reading WHERE kwh_consumed_ac = n)"
            )
        finally:
            await connection.close()
        return bool(missing == 0)

    await eventually(stored)


async def test_a_daemon_that_does_not_answer_is_left_alone(house: House) -> None:
    house.start_daemon()
    house.daemon.signal(signal.SIGSTOP)
    try:
        found = await house.check()
    finally:
        house.daemon.signal(signal.SIGCONT)
    assert found["daemon.runs"].level == "failure"
    assert {found[f"broker.{name}"].level for name in ("mqtt5", "login", "session", "subscribe")} == {"skipped"}
    assert await count_connections(house) == 1


@MAPPED
async def test_a_session_that_was_not_there_is_not_there_afterwards(start_house: StartHouse, mapped: str) -> None:
    house = start_house({"use_username_as_clientid": mapped})
    found = await house.check()
    assert found["broker.session"].level == "warning"
    assert "start the daemon once" in (found["broker.session"].remedy or "")
    probe, was_there = await enter(house)
    await probe.leave(forget=True)
    assert not was_there


async def test_the_session_is_entered_just_as_the_daemon_enters_it(house: House) -> None:
    """With another expiry the broker would forget it, with more than one message in flight it would deliver more."""
    connects: list[mqtt5.ConnectPacket] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packet, _ = mqtt5.read(memoryview(await reader.read(1000) or b"\xc0\x00"))
        if isinstance(packet, mqtt5.ConnectPacket):
            connects.append(packet)
            writer.write(mqtt5.ConnAckPacket(reason_code=mqtt5.ConnAckReasonCode.CLIENT_ID_NOT_VALID).write())
        writer.close()

    port = free_port()
    async with await asyncio.start_server(refuse, "127.0.0.1", port):
        await house.check(MQTT_URL=f"mqtt://fleetwatt:secret@127.0.0.1:{port}", MQTT_CA_FILE="")
    as_daemon = [packet for packet in connects if packet.username == "fleetwatt"]
    assert [packet.client_id for packet in as_daemon] == ["", "fleetwatt"]
    for packet in as_daemon:
        assert (packet.clean_start, packet.session_expiry_interval, packet.receive_max) == (False, SESSION_EXPIRY_S, 1)
    assert all(packet.username is None for packet in connects if packet not in as_daemon)


async def test_a_new_member_of_a_share_group_takes_no_readings_with_it(start_house: StartHouse) -> None:
    house = start_house(MQTT_SHARE_GROUP="daemons", MQTT_CLIENT_ID="daemon-2")
    found = await house.check()
    assert (found["broker.login"].level, found["broker.subscribe"].level) == ("ok", "skipped")


async def test_settings_of_another_broker_do_not_pass_for_the_daemons(house: House) -> None:
    house.start_daemon()
    found = await house.check(MQTT_URL=f"mqtts://fleetwatt:daemon-secret@127.0.0.1:{house.broker.port}")
    assert found["broker.login"].level == "warning"
    assert "the daemon is connected to localhost" in found["broker.login"].text
    assert await count_connections(house) == 1
