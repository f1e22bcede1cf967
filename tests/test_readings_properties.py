"""What holds for any message: it is accounted for, and what became of it can be stored in a real database."""

import asyncio
import json
import struct
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from daemon.readings import (
    EARLIEST,
    FORMS,
    PAYLOAD_BYTES_MAX,
    REASONS,
    Decoded,
    Form,
    Receipt,
    ReceiptClock,
    Rules,
    decode,
    decode_item,
)
from dev.fuzz_decode import TARGET
from sql import rejections
from sql.partitions import Days
from sql.rejections import Rejection
from sql.store import Kind, Row, Sorted, copy, insert, sort
from tests.test_readings import FOR_EVER, NOW, objects, payloads, topics

LATEST = NOW + timedelta(seconds=300)
LONGEST_TOPIC = 65_535
"""Bytes. MQTT has two for its length."""

anything = st.text(st.characters(exclude_categories=()), max_size=40)
"""With NUL, control characters and halves of surrogate pairs."""


def receipt(rules: Rules = FOR_EVER) -> Receipt:
    return Receipt(rules, ReceiptClock(lambda: NOW))


# Any bytes on any topic.


@settings(max_examples=500, deadline=None)
@given(topic=topics, message=payloads)
@example(topic="meters/m-1/reading", message=b"\xff")
@example(topic="", message=b"")
def test_the_promises_of_the_fuzz_target_hold_for_messages_that_are_nearly_good(topic: str, message: bytes) -> None:
    TARGET.check(topic.replace("\n", " ").encode() + b"\n" + message)


@settings(max_examples=300, deadline=None)
@given(topic=st.one_of(topics, anything), message=st.one_of(st.binary(max_size=100), payloads))
def test_any_bytes_on_any_topic_give_readings_or_rejections_with_a_reason(topic: str, message: bytes) -> None:
    for decoded in (decode(topic, message, receipt()), decode_item(message, receipt())):
        assert len(decoded.rows) + len(decoded.rejections) >= 1
        assert {rejection.reason for rejection in decoded.rejections} <= set(REASONS)


@pytest.mark.parametrize("letter", ["x", "/", "ä", "\0", "\U0001f50b"])
@pytest.mark.parametrize("start", ["", "meters/", "vehicles/v-1/reading/"])
def test_the_longest_topic_is_refused_in_a_short_sentence(start: str, letter: str) -> None:
    topic = start + letter * ((LONGEST_TOPIC - len(start)) // len(letter.encode()))
    (rejection,) = decode(topic, b"{}", receipt()).rejections
    assert rejection.topic == topic
    assert len(rejection.detail) < 200
    assert rejection.detail.isascii()


@settings(max_examples=100, deadline=None)
@given(topic=topics, fields=objects)
def test_decoding_again_at_the_same_moment_gives_the_same(topic: str, fields: dict[str, Any]) -> None:
    message = json.dumps([fields, fields]).encode()
    first, second = decode(topic, message, receipt()), decode(topic, message, receipt())
    assert (first.kind, first.rows, first.rejections) == (second.kind, second.rows, second.rejections)


# What is taken can be stored.

ids = st.text("ABCXYZabcxyz0189._:-", min_size=1, max_size=64)
edges = st.sampled_from(
    [
        EARLIEST,
        EARLIEST + timedelta(microseconds=1),
        datetime(2000, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2000, 3, 1, tzinfo=UTC),
        datetime(2025, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=UTC),
        NOW,
        LATEST,
    ]
)
moments = st.one_of(
    edges,
    st.datetimes(
        min_value=EARLIEST.replace(tzinfo=None),
        max_value=LATEST.replace(tzinfo=None),
        timezones=st.just(UTC),
    ),
)


def value(least: float, greatest: float) -> st.SearchStrategy[float]:
    """Numbers of a range, with its ends, both zeros and the smallest that there are."""
    extremes = [
        end for end in (least, greatest, 0.0, -0.0, 5e-324, 2.2250738585072014e-308) if least <= end <= greatest
    ]
    return st.one_of(st.floats(least, greatest), st.sampled_from(extremes))


def messages(form: Form) -> st.SearchStrategy[tuple[str, bytes]]:
    """A topic and a payload that is good."""
    fields = st.fixed_dictionaries(
        {key: value(least, greatest) for key, (least, greatest) in form.ranges.items()},
        optional={"timestamp": moments.map(datetime.isoformat)},
    )
    return st.tuples(ids.map(lambda name: f"{form.kind.name}s/{name}/reading"), fields.map(json.dumps).map(str.encode))


good_messages = st.lists(st.one_of(*(messages(form) for form in FORMS.values())), min_size=1, max_size=6)

in_a_database = settings(
    max_examples=40,
    deadline=None,
    # One database is enough: what an example stores is rolled back.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def and_back(url: str, do: Callable[[asyncpg.Connection], Awaitable[None]]) -> None:
    """Do something in a transaction that is rolled back."""

    async def connected() -> None:
        connection = await asyncpg.connect(url)
        try:
            transaction = connection.transaction()
            await transaction.start()
            await do(connection)
            await transaction.rollback()
        finally:
            await connection.close()

    asyncio.run(connected())


def to_the_bit(row: Row) -> tuple[Any, ...]:
    """0.0 and -0.0 are equal, but not here."""
    return tuple(struct.pack("d", each) if isinstance(each, float) else each for each in row)


async def copied(connection: asyncpg.Connection, kind: Kind, batch: Sorted) -> None:
    await copy(connection, kind, batch, Days())


async def inserted(connection: asyncpg.Connection, kind: Kind, batch: Sorted) -> None:
    assert (await insert(connection, kind, batch.rows, Days())).stored == len(batch.rows)


@pytest.mark.parametrize("store", [copied, inserted])
@in_a_database
@given(batch=good_messages)
def test_whatever_is_taken_can_be_stored_to_the_last_bit(
    database_url: str,
    store: Callable[[asyncpg.Connection, Kind, Sorted], Awaitable[None]],
    batch: list[tuple[str, bytes]],
) -> None:
    clock = ReceiptClock(lambda: NOW)
    decoded = [decode(topic, message, Receipt(FOR_EVER, clock)) for topic, message in batch]
    assert not any(each.rejections for each in decoded)

    async def store_and_look(connection: asyncpg.Connection) -> None:
        for form in FORMS.values():
            rows = [row for each in decoded if each.kind is form.kind for row in each.rows]
            if not rows:
                continue
            sorted_rows = sort(rows)
            await store(connection, form.kind, sorted_rows)
            found = await connection.fetch(f"SELECT * FROM {form.kind.history_table} ORDER BY 1, 2")
            assert [to_the_bit(tuple(row)) for row in found] == [to_the_bit(row[:-1]) for row in sorted_rows.rows]
            assert len(found) + sorted_rows.duplicates + len(sorted_rows.conflicts) == len(rows)
            live = await connection.fetch(f"SELECT * FROM {form.kind.name}_status ORDER BY 1")
            newest = {row[0]: to_the_bit(row[:-1]) for row in sorted_rows.rows}
            assert [to_the_bit(tuple(row)) for row in live] == list(newest.values())

    and_back(database_url, store_and_look)


# What is refused can be kept.


def refused(topic: str, message: bytes) -> list[Rejection]:
    decoded: list[Decoded] = [decode(topic, message, receipt()), decode_item(message, receipt())]
    return [rejection for each in decoded for rejection in each.rejections]


@in_a_database
@given(batch=st.lists(st.tuples(st.one_of(topics, anything), st.one_of(st.binary(max_size=100), payloads)), max_size=8))
@example(batch=[("meters/\0\ud800/reading", b"\0" * (PAYLOAD_BYTES_MAX + 1))])
@example(batch=[("\U0001f50b" * (LONGEST_TOPIC // 4), b"\xff" * PAYLOAD_BYTES_MAX)])
@example(batch=[("meters/m-1/reading", b'{"meterId":"\\u0000","voltage":"\\udfff","kwhConsumedAc":"\\u0000"}')])
def test_whatever_is_refused_can_be_kept_with_its_bytes(database_url: str, batch: list[tuple[str, bytes]]) -> None:
    given_up = [rejection for topic, message in batch for rejection in refused(topic, message)]

    async def keep_and_look(connection: asyncpg.Connection) -> None:
        await rejections.insert(connection, given_up)
        found = await connection.fetch("SELECT reason, detail, payload FROM rejection ORDER BY id")
        assert [tuple(row) for row in found] == [(each.reason, each.detail, each.payload) for each in given_up]

    and_back(database_url, keep_and_look)


@in_a_database
@given(text=anything, message=st.binary(max_size=50), reason=st.sampled_from(REASONS))
def test_whatever_a_rejection_says_can_be_kept(database_url: str, text: str, message: bytes, reason: str) -> None:
    async def keep_and_look(connection: asyncpg.Connection) -> None:
        await rejections.insert(connection, [Rejection(NOW, text, reason, text, message)])
        assert await connection.fetchval("SELECT payload FROM rejection") == message

    and_back(database_url, keep_and_look)
