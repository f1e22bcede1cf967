"""When a batch is handed to the writer, and what it holds. The clock is moved by hand."""

import asyncio
from collections import Counter
from datetime import UTC, datetime

import pytest

from daemon.batch import BYTES_MAX, Batch, Batches, Contents
from daemon.readings import Decoded
from sql.flood import Flood
from sql.rejections import Rejection
from sql.store import METER, VEHICLE, Kind

NOW = datetime(2026, 3, 14, tzinfo=UTC)
ROWS_MAX = 10
FLUSH_INTERVAL_S = 3600.0
"""So long that a test can end in time only because the clock was moved, or because a batch was full or closed."""
WAIT_S = 10


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Acknowledgements:
    """Remembers what a session was told."""

    def __init__(self) -> None:
        self.packet_ids: list[int] = []

    def acknowledge(self, packet_ids: list[int]) -> None:
        self.packet_ids += packet_ids


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def batches(clock: Clock) -> Batches:
    return Batches(ROWS_MAX, FLUSH_INTERVAL_S, clock)


def decoded(rows: int, kind: Kind = METER, rejections: int = 0) -> Decoded:
    rejection = Rejection(NOW, "meters/m/reading", "malformed_json", "", b"{")
    return Decoded(kind, [(f"m-{n}",) for n in range(rows)], [rejection] * rejections)


def deliver(
    batches: Batches,
    session: Acknowledgements,
    *messages: Decoded,
    packet_id: int | None = None,
    payload_bytes: int = 100,
) -> Batch:
    batch = batches.open(session)
    for message in messages:
        batch.add(message, payload_bytes, packet_id)
    batches.delivered()
    return batch


async def soon(batches: Batches) -> Batch | None:
    """The next batch, which must be due."""
    async with asyncio.timeout(WAIT_S):
        return await batches.next()


async def asking(batches: Batches) -> "asyncio.Task[Batch | None]":
    """A writer that waits for the next batch."""
    task = asyncio.create_task(soon(batches))
    await settled()
    return task


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_batch_holds_rows_by_kind_and_packet_ids_in_the_order_of_arrival_and_counts() -> None:
    batch = Batch(Acknowledgements(), 0.0)
    batch.add(decoded(2), 60, 7)
    batch.add(decoded(1, VEHICLE), 50, 3)
    batch.add(decoded(1, METER, rejections=2), 90, None)  # QoS 0 has no packet id
    batch.add(Decoded(None, (), decoded(0, rejections=1).rejections), 1, 9)
    assert batch.contents.rows == {METER: [("m-0",), ("m-1",), ("m-0",)], VEHICLE: [("m-0",)]}
    assert (batch.readings, batch.bytes, batch.packet_ids) == (7, 201, [7, 3, 9])


def test_rejections_are_kept_as_far_as_the_flood_s_limit_goes_and_counted_beyond_it() -> None:
    contents, clock = Contents(), Clock()
    not_kept: Counter[str] = Counter()
    flood = Flood(1, lambda reason, count: not_kept.update({reason: count}), clock)
    rejections = decoded(0, rejections=60_000).rejections
    contents.reject(rejections, flood)
    contents.reject(rejections, flood)
    assert len(contents.rejections) + contents.not_kept.total() == 120_000
    assert 60_000 < len(contents.rejections) < 120_000
    assert contents.not_kept == not_kept


async def test_large_payloads_fill_a_batch_with_few_readings(batches: Batches) -> None:
    session = Acknowledgements()
    batch = deliver(batches, session, decoded(1), payload_bytes=BYTES_MAX)
    assert await soon(batches) is batch
    assert batches.bytes == BYTES_MAX  # it is in the writer's hands and still in memory
    assert deliver(batches, session, decoded(1)) is not batch


async def test_a_full_batch_is_due_at_once(batches: Batches) -> None:
    batch = deliver(batches, Acknowledgements(), decoded(ROWS_MAX))
    assert await soon(batches) is batch


async def test_rejections_fill_a_batch_as_rows_do(batches: Batches) -> None:
    batch = deliver(batches, Acknowledgements(), decoded(4, rejections=6))
    assert await soon(batches) is batch


async def test_a_batch_that_is_not_full_is_due_when_it_is_old(batches: Batches, clock: Clock) -> None:
    session = Acknowledgements()
    writer = await asking(batches)
    batch = deliver(batches, session, decoded(1))
    clock.now_s += FLUSH_INTERVAL_S - 1
    deliver(batches, session, decoded(1))
    await settled()
    assert not writer.done()
    clock.now_s += 1
    deliver(batches, session, decoded(1))
    assert await writer is batch
    assert batch.readings == 3


async def test_a_batch_falls_due_by_itself_when_nothing_more_arrives() -> None:
    batches = Batches(ROWS_MAX, 0.02, asyncio.get_running_loop().time)
    writer = await asking(batches)
    opened_at_s = asyncio.get_running_loop().time()
    batch = deliver(batches, Acknowledgements(), decoded(1))
    assert await writer is batch
    assert asyncio.get_running_loop().time() - opened_at_s > 0.019


async def test_a_batch_grows_while_the_writer_is_busy(batches: Batches, clock: Clock) -> None:
    session = Acknowledgements()
    first = deliver(batches, session, decoded(ROWS_MAX))
    assert await soon(batches) is first
    second = deliver(batches, session, decoded(1))
    clock.now_s += 10 * FLUSH_INTERVAL_S
    for _ in range(8):
        assert deliver(batches, session, decoded(1)) is second
    assert await soon(batches) is second
    assert second.readings == 9


async def test_a_delivery_is_taken_whole_and_the_next_one_starts_another_batch(batches: Batches) -> None:
    session = Acknowledgements()
    first = deliver(batches, session, decoded(9), decoded(50))
    second = deliver(batches, session, decoded(1))
    assert first is not second
    assert (first.readings, second.readings) == (59, 1)
    assert await soon(batches) is first


async def test_each_session_has_batches_of_its_own_in_the_order_of_arrival(batches: Batches) -> None:
    old, new = Acknowledgements(), Acknowledgements()
    first = deliver(batches, old, decoded(1))
    second = deliver(batches, new, decoded(1))
    third = deliver(batches, old, decoded(1))
    assert [batch.session for batch in (first, second, third)] == [old, new, old]
    assert await soon(batches) is first  # not full and not old, but nothing more can come to it
    assert await soon(batches) is second
    writer = await asking(batches)
    assert not writer.done()
    batches.close()
    assert await writer is third


async def test_a_batch_that_was_handed_out_takes_nothing_more(batches: Batches) -> None:
    session = Acknowledgements()
    first = deliver(batches, session, decoded(ROWS_MAX))
    assert await soon(batches) is first
    assert deliver(batches, session, decoded(1)) is not first
    assert first.readings == ROWS_MAX


async def test_closing_hands_out_the_rest_and_then_none(batches: Batches) -> None:
    first = deliver(batches, Acknowledgements(), decoded(1))
    second = deliver(batches, Acknowledgements(), decoded(1))
    batches.close()
    assert [await soon(batches) for _ in range(4)] == [first, second, None, None]


async def test_closing_wakes_a_writer_that_waits(batches: Batches) -> None:
    writer = await asking(batches)
    batches.close()
    assert await writer is None


async def test_the_oldest_age_is_that_of_the_batch_being_written_until_the_next_is_asked_for(
    batches: Batches, clock: Clock
) -> None:
    session = Acknowledgements()
    assert batches.oldest_age_s() == 0
    deliver(batches, session, decoded(ROWS_MAX))
    clock.now_s += 5
    assert batches.oldest_age_s() == 5
    await soon(batches)
    deliver(batches, session, decoded(1))
    clock.now_s += 2
    assert batches.oldest_age_s() == 7
    writer = await asking(batches)
    assert batches.oldest_age_s() == 2
    batches.close()
    await writer
    assert batches.oldest_age_s() == 2
    assert await soon(batches) is None
    assert batches.oldest_age_s() == 0
