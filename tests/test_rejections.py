"""Rejections: what could not be stored as a reading is kept with its bytes, whatever these and its words are."""

from datetime import UTC, datetime

import asyncpg

from sql.rejections import DETAIL_CHARACTERS_MAX, Rejection, insert

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
