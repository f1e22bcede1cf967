"""Each fault of the network does to a connection what it says."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

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


Connect: TypeAlias = Callable[[], Awaitable[Client]]


@pytest.fixture
async def connect(network: Network) -> AsyncIterator[Connect]:
    """Connects through the network; whatever becomes of the test, its connections end with it."""
    clients: list[Client] = []

    async def connect() -> Client:
        port = int(network.url.rpartition(":")[2])
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", port)))
        return clients[-1]

    yield connect
    for client in clients:
        client.writer.close()


async def test_without_a_fault_every_byte_passes(connect: Connect) -> None:
    client = await connect()
    assert await client.ask(LETTERS) == LETTERS


async def test_the_url_keeps_everything_but_the_address() -> None:
    with Network("postgresql://user:secret@192.0.2.1:5432/fleet?sslmode=disable") as network:
        assert network.url.startswith("postgresql://user:secret@127.0.0.1:")
        assert network.url.endswith("/fleet?sslmode=disable")


async def test_down_resets_and_refuses_until_it_is_up(network: Network, connect: Connect) -> None:
    client = await connect()
    assert await client.ask(b"x") == b"x"
    network.down()
    assert await client.received_before_a_reset() == 0
    with pytest.raises(ConnectionRefusedError):
        await connect()
    network.up()
    again = await connect()
    assert await again.ask(b"x") == b"x"


async def test_in_a_black_hole_everything_is_silent_and_stays_so_for_those_who_were_in_it(
    network: Network, connect: Connect
) -> None:
    before = await connect()
    assert await before.ask(b"x") == b"x"
    network.black_hole = True
    during = await connect()
    for client in (before, during):
        client.writer.write(b"good-bye")
        assert await client.is_silent()
    network.black_hole = False
    after = await connect()
    assert await after.ask(b"x") == b"x"
    before.writer.write(b"x")
    assert await before.is_silent()


async def test_latency_delays_and_keeps_the_order(network: Network, connect: Connect) -> None:
    client = await connect()
    network.latency_s, network.jitter_s = 0.05, 0.05
    started_s = time.monotonic()
    assert await client.ask(b"x") == b"x"
    assert time.monotonic() - started_s >= 0.1  # there and back
    assert await client.ask(LETTERS) == LETTERS


async def test_a_slow_line_is_slow(network: Network, connect: Connect) -> None:
    client = await connect()
    network.bytes_per_s = 100_000
    started_s = time.monotonic()
    assert await client.ask(LETTERS[:20_000]) == LETTERS[:20_000]
    assert time.monotonic() - started_s >= 0.2


async def test_a_reset_ends_every_connection_and_no_later_one(network: Network, connect: Connect) -> None:
    clients = [await connect() for _ in range(3)]
    for client in clients:
        assert await client.ask(b"x") == b"x"
    network.reset()
    assert [await client.received_before_a_reset() for client in clients] == [0, 0, 0]
    clients.append(await connect())
    assert await clients[-1].ask(b"x") == b"x"


async def test_a_cut_comes_in_the_middle(network: Network, connect: Connect) -> None:
    client = await connect()
    assert await client.ask(b"x") == b"x"
    network.cut_after_bytes = (70_001, 70_001)
    client.writer.write(LETTERS)
    assert await client.received_before_a_reset() < 70_001
    network.cut_after_bytes = None
    again = await connect()
    assert await again.ask(LETTERS) == LETTERS


async def test_an_answer_is_lost_and_the_request_is_not(network: Network, connect: Connect) -> None:
    client = await connect()
    network.lose_answer_to = b"COMMIT"
    client.writer.write(b"COMMIT")
    assert await client.reader.read() == b""
    assert network.answers_lost == 1


async def test_a_request_and_its_connection_are_swallowed_and_no_other(network: Network, connect: Connect) -> None:
    client, other = await connect(), await connect()
    assert await client.ask(b"x") == b"x"
    network.swallow_from = b"COMMIT"
    client.writer.write(b"COMMIT")
    assert await client.is_silent()
    assert await other.ask(b"COMMIT") == b"COMMIT"


async def test_a_hang_up_is_hidden_from_the_client(network: Network, connect: Connect) -> None:
    async def hidden() -> bool:
        return network.hang_ups_hidden == 1

    client = await connect()
    network.hide_hang_ups = True
    client.writer.write(b"good-bye")
    await eventually(hidden)
    assert await client.is_silent()
