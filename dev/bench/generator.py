"""The load, in a process of its own: QoS 1 packets of a fleet, as many as the bench allows or so many a second.

It keeps at most `UNACKNOWLEDGED_MAX` messages on each connection that the broker has not acknowledged. Acknowledgements
are counted by their size, since all are alike; any other answer of the broker ends it.
"""

import asyncio
import time
from functools import partial
from typing import cast

import mqtt5
from msgspec import Struct

from dev.bench.packets import PAIR, Fleet
from dev.bench.worker import Reports, run
from dev.publisher import PublisherError

CHUNK = 500
"""Messages in one write."""
UNACKNOWLEDGED_MAX = 4_000
TICK_S = 0.002
PUBACK_BYTES = 4


class LoadOptions(Struct, frozen=True):
    """What to publish."""

    port: int
    devices: int
    per_s: float = 0.0
    """Messages a second, whatever becomes of them; 0 = as fast as they are allowed by `allow`."""
    connections: int = 4


class LoadCounts(Struct):
    """Messages so far."""

    sent: int = 0
    acknowledged: int = 0


class Link(asyncio.Protocol):
    """One connection to the broker."""

    def __init__(self, acknowledged: asyncio.Event, client_id: str) -> None:
        self.sent = self.acknowledged = 0
        self.fault: PublisherError | None = None
        self.is_accepted = False
        self._client_id = client_id
        self._news = acknowledged
        self._rest = b""
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # TCP gives no other
        self._transport.write(mqtt5.ConnectPacket(self._client_id, clean_start=True, keep_alive=0).write())

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        if not self.is_accepted:
            packet, size = mqtt5.read(memoryview(data))  # CONNACK comes whole
            self.is_accepted = isinstance(packet, mqtt5.ConnAckPacket) and int(packet.reason_code) == 0
            data = data[size:]
        pubacks = len(data) // PUBACK_BYTES
        whole = data[: pubacks * PUBACK_BYTES]
        self._rest = data[pubacks * PUBACK_BYTES :]
        if (
            not self.is_accepted
            or whole[::PUBACK_BYTES] != b"\x40" * pubacks
            or whole[1::PUBACK_BYTES] != b"\x02" * pubacks
        ):
            self.fault = PublisherError(f"the broker refused something: {data[:64].hex(' ')}")
        self.acknowledged += pubacks
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fault = self.fault or PublisherError(f"the broker closed the connection: {exc}")
        self._news.set()

    def send(self, fleet: Fleet, messages: int) -> int:
        """Publish up to that many messages, in one write, and return how many."""
        packets, count = fleet.take(messages, self.sent, time.time_ns() // 1_000_000)
        self._transport.write(packets)
        self.sent += count
        return count

    @property
    def room(self) -> int:
        """How many more messages may be on their way."""
        return UNACKNOWLEDGED_MAX - self.sent + self.acknowledged


class Generator:
    """The connections, and how much they may send."""

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._fleet = Fleet(options.devices)
        self._news = asyncio.Event()
        self._links: list[Link] = []
        self._allowed = 0
        self._ending = False

    @property
    def counts(self) -> LoadCounts:
        """Of all connections."""
        return LoadCounts(sum(link.sent for link in self._links), sum(link.acknowledged for link in self._links))

    async def run(self, reports: Reports) -> None:
        """Publish until the bench says it is enough, and wait for the last acknowledgement."""
        loop = asyncio.get_running_loop()
        for number in range(self._options.connections):
            _, link = await loop.create_connection(
                partial(Link, self._news, f"load-{number}"), "127.0.0.1", self._options.port
            )
            self._links.append(link)
        publishing = asyncio.create_task(self._paced() if self._options.per_s else self._allowed_only())
        attending = asyncio.create_task(reports.attend(lambda: self.counts, self._obey))
        await asyncio.wait([publishing, attending], return_when=asyncio.FIRST_COMPLETED)
        self._ending = True
        self._news.set()
        await publishing
        while self.counts.acknowledged < self.counts.sent:
            await self._wait()
        reports.say(self.counts)

    def _obey(self, command: str) -> None:
        self._allowed = int(command.removeprefix("allow "))
        self._news.set()

    async def _allowed_only(self) -> None:
        while not self._ending:
            if not self._send(self._allowed - self.counts.sent):
                await self._wait()

    async def _paced(self) -> None:
        began_at_s = time.perf_counter()
        while not all(link.is_accepted for link in self._links):
            await self._wait()
        while not self._ending:
            due = int((time.perf_counter() - began_at_s) * self._options.per_s)
            self._check()
            self._send(due - self.counts.sent)
            await asyncio.sleep(TICK_S)

    def _send(self, messages: int) -> bool:
        """Send some of these messages, in turn on the connections that have room; whether any was sent."""
        before = messages
        for link in self._links:
            if link.is_accepted and messages >= PAIR and link.room >= CHUNK:
                messages -= link.send(self._fleet, min(messages, CHUNK))
        return messages < before

    async def _wait(self) -> None:
        await self._news.wait()
        self._news.clear()
        self._check()

    def _check(self) -> None:
        for link in self._links:
            if link.fault:
                raise link.fault


async def generate(options: LoadOptions, reports: Reports) -> None:
    """Publish until the bench says it is enough."""
    await Generator(options).run(reports)


if __name__ == "__main__":
    run(generate, LoadOptions)
