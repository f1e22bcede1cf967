"""Each fault of the network does to a connection what it says."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from dev.house import eventually
from dev.network import Network

LETTERS = b"abcdefghij" * 10_000


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    """A network before a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (data := await reader.read(1 << 16)) and data != b"good-bye":
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    with Network(f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}") as network:
        yield network
    server.close()


class Client:
    """One connection through the network."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await self.reader.readexactly(len(data))

    async def is_silent(self) -> bool:
        try:
            async with asyncio.timeout(0.2):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False

    async def received_before_a_reset(self) -> int:
        received = 0
        try:
            while data := await self.reader.read(1 << 16):
                received += len(data)
        except ConnectionResetError:
            return received
        raise AssertionError("it ended without a reset")


async def connect(network: Network) -> Client:
    port = int(network.url.rpartition(":")[2])
    return Client(*await asyncio.open_connection("127.0.0.1", port))


async def test_without_a_fault_every_byte_passes(network: Network) -> None:
    client = await connect(network)
    assert await client.ask(LETTERS) == LETTERS
    client.writer.close()


async def test_the_url_keeps_everything_but_the_address() -> None:
    with Network("postgresql://user:secret@192.0.2.1:5432/fleet?sslmode=disable") as network:
        assert network.url.startswith("postgresql://user:secret@127.0.0.1:")
        assert network.url.endswith("/fleet?sslmode=disable")


async def test_down_resets_and_refuses_until_it_is_up(network: Network) -> None:
    client = await connect(network)
    assert await client.ask(b"x") == b"x"
    network.down()
    assert await client.received_before_a_reset() == 0
    with pytest.raises(ConnectionRefusedError):
        await connect(network)
    network.up()
    again = await connect(network)
    assert await again.ask(b"x") == b"x"
    for each in (client, again):
        each.writer.close()


async def test_in_a_black_hole_everything_is_silent_and_stays_so_for_those_who_were_in_it(network: Network) -> None:
    before = await connect(network)
    assert await before.ask(b"x") == b"x"
    network.black_hole = True
    during = await connect(network)
    for client in (before, during):
        client.writer.write(b"good-bye")
        assert await client.is_silent()
    network.black_hole = False
    after = await connect(network)
    assert await after.ask(b"x") == b"x"
    before.writer.write(b"x")
    assert await before.is_silent()
    for client in (before, during, after):
        client.writer.close()


async def test_latency_delays_and_keeps_the_order(network: Network) -> None:
    client = await connect(network)
    network.latency_s, network.jitter_s = 0.05, 0.05
    started_s = time.monotonic()
    assert await client.ask(b"x") == b"x"
    assert time.monotonic() - started_s >= 0.1  # there and back
    assert await client.ask(LETTERS) == LETTERS
    client.writer.close()


async def test_a_slow_line_is_slow(network: Network) -> None:
    client = await connect(network)
    network.bytes_per_s = 100_000
    started_s = time.monotonic()
    assert await client.ask(LETTERS[:20_000]) == LETTERS[:20_000]
    assert time.monotonic() - started_s >= 0.2
    client.writer.close()


async def test_a_reset_ends_every_connection_and_no_later_one(network: Network) -> None:
    clients = [await connect(network) for _ in range(3)]
    for client in clients:
        assert await client.ask(b"x") == b"x"
    network.reset()
    assert [await client.received_before_a_reset() for client in clients] == [0, 0, 0]
    clients.append(await connect(network))
    assert await clients[-1].ask(b"x") == b"x"
    for client in clients:
        client.writer.close()


async def test_a_cut_comes_in_the_middle(network: Network) -> None:
    client = await connect(network)
    assert await client.ask(b"x") == b"x"
    network.cut_after_bytes = (70_001, 70_001)
    client.writer.write(LETTERS)
    assert await client.received_before_a_reset() < 70_001
    network.cut_after_bytes = None
    again = await connect(network)
    assert await again.ask(LETTERS) == LETTERS
    for each in (client, again):
        each.writer.close()


async def test_an_answer_is_lost_and_the_request_is_not(network: Network) -> None:
    client = await connect(network)
    network.lose_answer_to = b"COMMIT"
    client.writer.write(b"COMMIT")
    assert await client.reader.read() == b""
    assert network.answers_lost == 1
    client.writer.close()


async def test_a_request_and_its_connection_are_swallowed_and_no_other(network: Network) -> None:
    client, other = await connect(network), await connect(network)
    assert await client.ask(b"x") == b"x"
    network.swallow_from = b"COMMIT"
    client.writer.write(b"COMMIT")
    assert await client.is_silent()
    assert await other.ask(b"COMMIT") == b"COMMIT"
    for each in (client, other):
        each.writer.close()


async def test_a_hang_up_is_hidden_from_the_client(network: Network) -> None:
    async def hidden() -> bool:
        return network.hang_ups_hidden == 1

    client = await connect(network)
    network.hide_hang_ups = True
    client.writer.write(b"good-bye")
    await eventually(hidden)
    assert await client.is_silent()
    client.writer.close()
