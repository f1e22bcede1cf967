"""Rejections: kept once and with their bytes, whatever these are; grouped, listed and purged."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from dev.house import eventually
from dev.postgres import PrivatePostgres
from sql import rejections
from sql.migrate import load, migrate
from sql.rejections import (
    DETAIL_CHARACTERS_MAX,
    Chosen,
    Kept,
    Position,
    Rejection,
    fetch,
    get,
    group,
    insert,
    purge,
)
from tests.conftest import Connect

AT = datetime(2024, 5, 1, 12, tzinfo=UTC)


def rejection(topic: str = "meters/m1/reading", detail: str = "a sentence", payload: bytes = b"{}") -> Rejection:
    return Rejection(AT, topic, "malformed_json", detail, payload)


async def kept(connection: asyncpg.Connection) -> list[Rejection]:
    rows = await connection.fetch("SELECT received_at, topic, reason, detail, payload FROM rejection ORDER BY id")
    return [Rejection(*row) for row in rows]


async def test_rejections_are_kept_in_their_order_with_all_they_have(database: asyncpg.Connection) -> None:
    given = [rejection(topic=f"meters/m{n}/reading", detail=f"sentence {n}", payload=b"%d" % n) for n in range(50)]
    await insert(database, given)
    assert await kept(database) == given


PAYLOADS = {
    "nothing": b"",
    "NUL": b"\0",
    "every byte": bytes(range(256)),
    "no UTF-8": b'{"kwh":"\xff\xfe"}',
    "half a surrogate pair": b"\xed\xa0\x80",
    "2 MB": b"x" * 2_000_000,
}


async def test_the_bytes_are_kept_as_they_came(database: asyncpg.Connection) -> None:
    await insert(database, [rejection(detail=name, payload=payload) for name, payload in PAYLOADS.items()])
    assert {each.detail: each.payload for each in await kept(database)} == PAYLOADS


TEXTS = {
    "meters/m\0/reading": "meters/m\\0/reading",
    "meters/\ud83d/reading": "meters/\\ud83d/reading",
    "meters/\U0001f50c/reading": "meters/\U0001f50c/reading",
    "meters/'; DROP TABLE rejection --/reading": "meters/'; DROP TABLE rejection --/reading",
    "": "",
}


async def test_text_that_postgresql_cannot_hold_is_written_out(database: asyncpg.Connection) -> None:
    await insert(database, [rejection(topic=text, detail=text) for text in TEXTS])
    stored = list(TEXTS.values())
    assert [(each.topic, each.detail) for each in await kept(database)] == list(zip(stored, stored, strict=True))


async def test_a_sentence_without_end_is_cut(database: asyncpg.Connection) -> None:
    await insert(database, [rejection(detail="\ud800" * 10_000), rejection(detail="x" * 10_000)])
    assert {len(each.detail) for each in await kept(database)} == {DETAIL_CHARACTERS_MAX}


async def test_no_rejections_are_no_work(database: asyncpg.Connection) -> None:
    await insert(database, [])
    assert await kept(database) == []


async def test_a_batch_that_is_sent_again_is_there_once(database: asyncpg.Connection) -> None:
    given = [rejection(topic=f"meters/m{n % 3}/reading", payload=b"%d" % (n % 5)) for n in range(60)]
    for _ in range(3):
        await insert(database, given)
    assert await kept(database) == given


async def test_equal_messages_of_one_batch_are_all_kept(database: asyncpg.Connection) -> None:
    for times in (2, 2, 5):  # the last batch is the same with more of them
        await insert(database, [rejection()] * times)
    assert await kept(database) == [rejection()] * 5


@pytest.mark.parametrize(
    "changes",
    [
        {"received_at": AT + timedelta(microseconds=1)},
        {"topic": "meters/m2/reading"},
        {"reason": "too_old"},
        {"payload": b"{} "},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_what_differs_in_anything_that_counts_is_another(
    database: asyncpg.Connection, changes: dict[str, Any]
) -> None:
    await insert(database, [rejection()])
    other = replace(rejection(), **changes)
    await insert(database, [other])
    assert await kept(database) == [rejection(), other]


async def test_a_sentence_in_other_words_is_no_other_rejection(database: asyncpg.Connection) -> None:
    await insert(database, [rejection(detail="one word")])
    await insert(database, [rejection(detail="another")])
    assert await kept(database) == [rejection(detail="one word")]


async def test_a_try_that_is_still_under_way_at_the_server_is_waited_for(
    database: asyncpg.Connection, database_url: str, connected: Connect
) -> None:
    """A client that gave up waiting may send the batch again while the server still works on the first try."""
    given = [rejection(payload=b"%d" % n) for n in range(10)]
    first = await connected(database_url)
    transaction = first.transaction()
    await transaction.start()
    await insert(first, given)
    second = asyncio.create_task(insert(database, given))
    await eventually(lambda: first.fetchval("SELECT true FROM pg_locks WHERE NOT granted"))
    await transaction.commit()
    await second
    assert await kept(database) == given


async def test_rejections_of_an_earlier_release_stay_as_they_were(
    postgres: PrivatePostgres, connected: Connect
) -> None:
    postgres.create_database("earlier")
    connection = await connected(postgres.url("earlier"))
    migrations = load()
    await migrate(connection, migrations[:3])
    await connection.execute(
        "INSERT INTO rejection (received_at, topic, reason, detail, payload) "
        "SELECT $1, topic, 'malformed_json', '', '' FROM unnest($2::text[]) AS topic",
        AT,
        [*DEVICES, *DEVICES],
    )
    await migrate(connection, migrations)
    found = await connection.fetch("SELECT topic, device FROM rejection ORDER BY id")
    assert [tuple(row) for row in found] == [*DEVICES.items(), *DEVICES.items()]
    postgres.drop_database("earlier")


DEVICES = {
    "meters/m1/reading": "m1",
    "vehicles/v.1:a-b_c/reading": "v.1:a-b_c",
    "meters/m1/typo": "m1",
    "meters/m1": "m1",
    "meters/m1/a/b/c": "m1",
    f"meters/{'x' * 64}/reading": "x" * 64,
    f"meters/{'x' * 65}/reading": "-",
    "meters/m 1/reading": "-",
    "meters//reading": "-",
    "meters/": "-",
    "xmeters/m1/reading": "-",
    "http": "-",
    "meters/ä/reading": "-",
    "meters/m1\n/reading": "-",
    "": "-",
}


async def test_the_device_is_that_of_the_topic(database: asyncpg.Connection) -> None:
    await insert(database, [rejection(topic=topic) for topic in DEVICES])
    found = await database.fetch("SELECT topic, device FROM rejection ORDER BY id")
    assert [tuple(row) for row in found] == list(DEVICES.items())


def received(minute: int, device: str, reason: str, payload: bytes = b"{}") -> Rejection:
    return Rejection(AT + timedelta(minutes=minute), f"meters/{device}/reading", reason, f"{reason} {minute}", payload)


SOME = [
    received(0, "m1", "too_old"),
    received(1, "m1", "too_old"),
    received(2, "m1", "out_of_range"),
    received(3, "m2", "too_old"),
    received(4, "m1", "too_old"),
]


async def test_groups_have_their_size_their_times_and_their_newest(database: asyncpg.Connection) -> None:
    await insert(database, SOME)
    found = await group(database, Chosen(), 10)
    assert [(each.reason, each.device, each.rejections, each.example_detail) for each in found.items] == [
        ("too_old", "m1", 3, "too_old 4"),
        ("out_of_range", "m1", 1, "out_of_range 2"),
        ("too_old", "m2", 1, "too_old 3"),
    ]
    first = found.items[0]
    assert (first.first_received_at, first.last_received_at) == (SOME[0].received_at, SOME[4].received_at)
    assert (found.groups, found.rejections, found.is_complete) == (3, 5, True)


@pytest.mark.parametrize(
    ("chosen", "minutes"),
    [
        (Chosen(), [0, 1, 2, 3, 4]),
        (Chosen(reason="too_old"), [0, 1, 3, 4]),
        (Chosen(device="m1"), [0, 1, 2, 4]),
        (Chosen(reason="too_old", device="m1"), [0, 1, 4]),
        (Chosen(since=SOME[1].received_at), [1, 2, 3, 4]),
        (Chosen(until=SOME[1].received_at), [0]),
        (Chosen(since=SOME[1].received_at, until=SOME[3].received_at), [1, 2]),
        (Chosen(device="m9"), []),
    ],
)
async def test_groups_and_lists_choose_the_same(
    database: asyncpg.Connection, chosen: Chosen, minutes: list[int]
) -> None:
    await insert(database, SOME)
    listed = await fetch(database, chosen, None, 10, 1000)
    assert [(each.rejection.received_at - AT) // timedelta(minutes=1) for each in listed] == minutes
    assert (await group(database, chosen, 10)).rejections == len(minutes)


async def test_a_list_of_groups_is_bounded_and_says_so(
    database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await insert(database, SOME)
    few = await group(database, Chosen(), 1)
    assert (len(few.items), few.groups, few.rejections) == (1, 3, 5)
    monkeypatch.setattr(rejections, "GROUPED_MAX", 2)
    newest = await group(database, Chosen(), 10)
    assert [(each.reason, each.rejections) for each in newest.items] == [("too_old", 1), ("too_old", 1)]
    assert (newest.rejections, newest.is_complete) == (2, False)


async def test_pages_follow_each_other_in_the_order_of_receipt(database: asyncpg.Connection) -> None:
    given = [received(n % 7, f"m{n}", "too_old") for n in range(50)]
    await insert(database, given)
    found: list[Kept] = []
    while page := await fetch(database, Chosen(), found[-1].position if found else None, 3, 1000):
        assert len(page) <= 3
        found += page
    assert [each.rejection for each in found] == sorted(given, key=lambda each: each.received_at)
    assert [Position.parse(str(each.position)) for each in found] == [each.position for each in found]


async def test_a_page_ends_where_its_payloads_are_enough(database: asyncpg.Connection) -> None:
    await insert(database, [received(n, "m1", "too_large", b"x" * 100_000) for n in range(5)])
    for bytes_max, count in ((1, 1), (100_000, 1), (100_001, 2), (250_000, 3), (10**9, 5)):
        assert len(await fetch(database, Chosen(), None, 10, bytes_max)) == count


@pytest.mark.parametrize(
    ("payload", "bytes_max", "text"),
    [
        (b"", 10, ""),
        (b'{"a": 1}', 10, '{"a": 1}'),
        (b"\xff", 10, None),
        (b"a\xf0\x9f\x94\x8c", 10, "a\U0001f50c"),
        (b"a\xf0\x9f\x94\x8c", 4, "a"),
        (b"a\xf0\x9f\x94\x8c", 2, "a"),
        (b"a\xf0\x9f\x94", 10, None),
    ],
)
async def test_a_payload_is_text_where_it_can_be(
    database: asyncpg.Connection, payload: bytes, bytes_max: int, text: str | None
) -> None:
    await insert(database, [rejection(payload=payload)])
    shown = await get(database, (await fetch(database, Chosen(), None, 1, 1))[0].id, bytes_max)
    assert shown is not None
    assert (shown.payload, shown.payload_bytes) == (text, len(payload))
    assert payload.startswith(shown.content)
    assert await get(database, shown.id + 1, bytes_max) is None


async def test_the_oldest_are_purged_a_slice_at_a_time(database: asyncpg.Connection) -> None:
    await insert(database, SOME)
    before = SOME[3].received_at
    assert [await purge(database, before, 2) for _ in range(3)] == [2, 1, 0]
    assert await kept(database) == SOME[3:]
