"""Rejections decoded again: what passes is stored once and gone, what fails stays as it was."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest

from daemon.readings import NO_TOPIC, REASONS, Rules, decode_again
from sql import rejections
from sql import replay as replay_module
from sql.partitions import Days
from sql.pool import Connection, Pool, lease
from sql.rejections import Chosen, Kept, Position, Rejection
from sql.replay import Outcome, Report, replay

NOW = datetime.now(UTC).replace(microsecond=0)
"""Near enough to the time of the test."""
THEN = NOW - timedelta(hours=2)
RULES = Rules(clock_ahead_max=timedelta(seconds=300), retention=timedelta(days=30))
MINUTE = timedelta(minutes=1)
ALL = 10**9


def reading(ts: datetime | None = THEN, **changes: Any) -> dict[str, Any]:
    stamp = {"timestamp": ts.isoformat()} if ts else {}
    return {"kwhConsumedAc": 1.5, "voltage": 230.0, **stamp, **changes}


def vehicle_reading(ts: datetime | None = THEN, **changes: Any) -> dict[str, Any]:
    stamp = {"timestamp": ts.isoformat()} if ts else {}
    return {"soc": 50.0, "kwhDeliveredDc": 1.5, "batteryTemp": 20.0, **stamp, **changes}


def rejected(
    value: Any, reason: str = "clock_ahead", topic: str = "meters/m1/reading", received_at: datetime = THEN
) -> Rejection:
    payload = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Rejection(received_at, topic, reason, "a sentence", payload)


async def again(pool: Pool, chosen: Chosen | None = None, **changes: Any) -> Report:
    """Replay as the command line does."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[Connection]:
        async with lease(pool) as connection:
            yield connection

    options = {"dry_run": False, "limit": ALL, **changes}
    return await replay(connect, chosen or Chosen(), partial(decode_again, rules=RULES, now=NOW), Days(), **options)


async def left(database: asyncpg.Connection) -> list[Kept]:
    return await rejections.fetch(database, Chosen(), None, ALL, ALL)


async def contents(database: asyncpg.Connection) -> list[Any]:
    """All that a replay might change."""
    tables = ("meter_reading", "vehicle_reading", "meter_status", "vehicle_status", "rejection")
    return [sorted(map(repr, await database.fetch(f"TABLE {table}"))) for table in tables]


def figures(report: Report) -> tuple[int, int, dict[str, int]]:
    rejected: dict[str, int] = {}
    for outcome in report.outcomes:
        for reason, count in outcome.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + count
    return sum(o.stored for o in report.outcomes), sum(o.duplicate for o in report.outcomes), rejected


async def test_what_was_ahead_then_is_stored_now_with_its_time_of_receipt(
    pool: Pool, database: asyncpg.Connection
) -> None:
    await rejections.insert(database, [rejected(reading(NOW - timedelta(minutes=5)))])
    report = await again(pool)
    assert report == Report(False, 1, [Outcome("clock_ahead", rejections=1, stored=1)])
    stored = await database.fetchrow("SELECT meter_id, ts, kwh_consumed_ac, voltage, received_at FROM meter_reading")
    assert tuple(stored) == ("m1", NOW - timedelta(minutes=5), 1.5, 230.0, THEN)
    assert await database.fetchval("SELECT ts FROM meter_status") == NOW - timedelta(minutes=5)
    assert await left(database) == []


async def test_an_old_reading_does_not_move_the_live_state_back(pool: Pool, database: asyncpg.Connection) -> None:
    for ts in (THEN + MINUTE, THEN):
        await rejections.insert(database, [rejected(reading(ts))])
        assert figures(await again(pool)) == (1, 0, {})
    assert await database.fetchval("SELECT ts FROM meter_status") == THEN + MINUTE


STILL_BAD = {
    "malformed_json": b"\xff{",
    "out_of_range": json.dumps(reading(voltage=-1)).encode(),
    "clock_ahead": json.dumps(reading(NOW + timedelta(seconds=301))).encode(),
    "too_old": json.dumps(reading(NOW - timedelta(days=31))).encode(),
    "id_mismatch": json.dumps(reading(meterId="m2")).encode(),
}


async def test_what_is_still_bad_stays_as_it_was(pool: Pool, database: asyncpg.Connection) -> None:
    await rejections.insert(database, [rejected(payload, reason) for reason, payload in STILL_BAD.items()])
    before = await contents(database)
    report = await again(pool)
    assert figures(report) == (0, 0, dict.fromkeys(STILL_BAD, 1))
    assert {outcome.reason: outcome.rejected for outcome in report.outcomes} == {
        reason: {reason: 1} for reason in STILL_BAD
    }
    assert await contents(database) == before


async def test_what_is_there_already_is_a_duplicate_and_gone(pool: Pool, database: asyncpg.Connection) -> None:
    given = [rejected(reading()), rejected(vehicle_reading(), topic="vehicles/v1/reading")]
    for _ in range(2):
        await rejections.insert(database, given)
        report = await again(pool)
    assert figures(report) == (0, 2, {})
    assert await left(database) == []
    assert await database.fetchval("SELECT count(*) FROM meter_reading") == 1


@pytest.mark.parametrize("apart", [timedelta(0), timedelta(seconds=1)], ids=["one delivery", "two deliveries"])
async def test_a_conflict_stays_even_where_both_came_in_one_delivery(
    pool: Pool, database: asyncpg.Connection, apart: timedelta
) -> None:
    await rejections.insert(database, [rejected(reading())])
    await again(pool)
    await rejections.insert(database, [rejected(reading(voltage=1), "conflict", received_at=THEN + apart)])
    before = await contents(database)
    for dry_run in (True, False):
        assert figures(await again(pool, dry_run=dry_run)) == (0, 0, {"conflict": 1})
        assert await contents(database) == before


async def test_repetitions_among_the_rejections_are_told_apart(pool: Pool, database: asyncpg.Connection) -> None:
    same, other = reading(), reading(voltage=1)
    await rejections.insert(database, [rejected(each) for each in (same, other, same, same)])
    for dry_run in (True, False):
        assert figures(await again(pool, dry_run=dry_run)) == (1, 2, {"conflict": 1})
    assert [json.loads(kept.rejection.payload) for kept in await left(database)] == [other]
    await rejections.insert(database, [rejected(other, received_at=THEN + timedelta(seconds=1))])
    assert figures(await again(pool)) == (0, 0, {"conflict": 2})


async def test_a_reading_without_a_time_gets_that_of_its_receipt(pool: Pool, database: asyncpg.Connection) -> None:
    given = [rejected(reading(None, voltage=float(n)), "out_of_range") for n in range(5)]
    await rejections.insert(database, given)
    assert figures(await again(pool)) == (5, 0, {})
    times = [row["ts"] for row in await database.fetch("SELECT ts FROM meter_reading ORDER BY ts")]
    assert len(set(times)) == 5
    assert all(THEN <= ts <= THEN + timedelta(seconds=2) for ts in times)


async def test_a_retained_reading_without_a_time_stays(pool: Pool, database: asyncpg.Connection) -> None:
    given = [rejected(reading(None), "bad_timestamp"), rejected(reading(), "bad_timestamp")]
    await rejections.insert(database, given)
    assert figures(await again(pool)) == (1, 0, {"bad_timestamp": 1})
    assert [kept.rejection for kept in await left(database)] == given[:1]


async def test_a_reading_without_a_time_that_is_older_than_what_is_kept_stays(
    pool: Pool, database: asyncpg.Connection
) -> None:
    await rejections.insert(database, [rejected(reading(None), received_at=NOW - timedelta(days=31))])
    assert figures(await again(pool)) == (0, 0, {"too_old": 1})


async def test_what_came_over_http_is_decoded_as_such(pool: Pool, database: asyncpg.Connection) -> None:
    given = [reading(meterId="m1"), vehicle_reading(vehicleId="v1"), reading(), reading(meterId="m 1")]
    await rejections.insert(database, [rejected(each, "wrong_type", NO_TOPIC) for each in given])
    assert figures(await again(pool)) == (2, 0, {"missing_field": 1, "bad_id": 1})
    assert len(await left(database)) == 2


async def test_of_an_array_only_the_bad_readings_stay(pool: Pool, database: asyncpg.Connection) -> None:
    bad, good = reading(voltage=-1), [reading(THEN + n * MINUTE) for n in range(3)]
    await rejections.insert(database, [rejected([*good, bad, *good[:1]], "too_large")])
    for dry_run in (True, False):
        report = await again(pool, dry_run=dry_run)
        assert figures(report) == (3, 1, {"out_of_range": 1})
        assert report.rejections == 1
    (kept,) = await left(database)
    assert (json.loads(kept.rejection.payload), kept.rejection.reason) == (bad, "out_of_range")
    assert (kept.rejection.topic, kept.rejection.received_at) == ("meters/m1/reading", THEN)
    assert figures(await again(pool)) == (0, 0, {"out_of_range": 1})


async def test_of_an_array_a_conflict_stays_too(pool: Pool, database: asyncpg.Connection) -> None:
    given = [reading(), reading(voltage=1), reading(voltage=1)]
    await rejections.insert(database, [rejected(given, "too_large")])
    assert figures(await again(pool)) == (1, 0, {"conflict": 2})
    assert [(kept.rejection.reason, json.loads(kept.rejection.payload)) for kept in await left(database)] == [
        ("conflict", given[1])
    ] * 2


async def test_a_row_that_the_database_refuses_stays_with_what_repeats_it(
    pool: Pool, database: asyncpg.Connection
) -> None:
    await database.execute("ALTER TABLE meter_reading ADD CONSTRAINT odd CHECK (voltage <> 13)")
    unlucky = reading(voltage=13)
    given = [rejected(each) for each in (unlucky, unlucky, reading(THEN + MINUTE))]
    await rejections.insert(database, given)
    assert figures(await again(pool)) == (1, 0, {"refused_by_database": 2})
    assert [kept.rejection for kept in await left(database)] == given[:2]


async def some_of_everything(database: asyncpg.Connection) -> None:
    good = [rejected(reading(THEN - n * MINUTE), received_at=THEN + n * MINUTE) for n in range(20)]
    bad = [rejected(payload, reason) for reason, payload in STILL_BAD.items()]
    vehicles = [
        rejected(vehicle_reading(THEN - n * MINUTE), "too_old", f"vehicles/v{n % 3}/reading") for n in range(20)
    ]
    await rejections.insert(database, good + bad + vehicles)


async def test_a_dry_run_says_what_is_done_then_and_changes_nothing(pool: Pool, database: asyncpg.Connection) -> None:
    await rejections.insert(database, [rejected(reading(THEN - n * MINUTE)) for n in range(3)])
    await again(pool)
    await some_of_everything(database)
    before = await contents(database)
    said = await again(pool, dry_run=True)
    assert await contents(database) == before
    done = await again(pool)
    assert figures(said) == figures(done) == (37, 3, dict.fromkeys(STILL_BAD, 1))
    assert (said.outcomes, said.dry_run, done.dry_run) == (done.outcomes, True, False)


async def test_slices_and_pages_leave_nothing_out(
    pool: Pool, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "SLICE_REJECTIONS", 7)
    monkeypatch.setattr(replay_module, "SLICE_BYTES", 400)
    await some_of_everything(database)
    seen, cursor, pages = 0, None, 0
    while pages == 0 or cursor:
        report = await again(pool, limit=10, after=Position.parse(cursor) if cursor else None)
        seen, cursor, pages = seen + report.rejections, report.next, pages + 1
        assert report.rejections <= 10
    assert (seen, pages) == (45, 5)
    assert await database.fetchval("SELECT count(*) FROM meter_reading") == 20
    assert await database.fetchval("SELECT count(*) FROM vehicle_reading") == 20
    assert {kept.rejection.reason for kept in await left(database)} == set(STILL_BAD)


async def test_a_page_that_ends_with_the_last_one_says_so(pool: Pool, database: asyncpg.Connection) -> None:
    await rejections.insert(database, [rejected(b"")] * 2)
    assert (await again(pool, limit=2)).next is None
    assert (await again(pool, limit=1)).next is not None
    assert await again(pool, Chosen(device="nobody")) == Report(False)


async def test_only_what_was_chosen_is_replayed(pool: Pool, database: asyncpg.Connection) -> None:
    await some_of_everything(database)
    ids = [kept.id for kept in await left(database) if kept.rejection.topic == "vehicles/v1/reading"][:2]
    for chosen, count in (
        (Chosen(ids=ids), 2),
        (Chosen(ids=ids), 0),
        (Chosen(device="v1"), 5),
        (Chosen(reason="too_old", device="m1"), 1),
        (Chosen(since=THEN + 10 * MINUTE), 10),
        (Chosen(until=THEN), 0),
    ):
        assert (await again(pool, chosen)).rejections == count


class KilledError(Exception):
    """Stands for kill -9."""


async def test_whoever_is_killed_between_store_and_delete_leaves_duplicates_only(
    pool: Pool, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await some_of_everything(database)
    await rejections.insert(database, [rejected([reading(None), reading(None), {}], "too_large")])

    async def dies(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as killing:
        killing.setattr(rejections, "replace", dies)
        with pytest.raises(KilledError):
            await again(pool)
    stored = await database.fetchval("SELECT count(*) FROM meter_reading")
    assert figures(await again(pool)) == (0, 42, {**dict.fromkeys(STILL_BAD, 1), "missing_field": 1})
    assert await database.fetchval("SELECT count(*) FROM meter_reading") == stored == 22


async def test_two_at_once_store_everything_once(pool: Pool, database: asyncpg.Connection) -> None:
    given = [rejected(reading(THEN - n * timedelta(seconds=1)), received_at=THEN + n * MINUTE) for n in range(3000)]
    await rejections.insert(database, given)
    reports = await asyncio.gather(again(pool), again(pool), again(pool))
    assert await database.fetchval("SELECT count(*) FROM meter_reading") == 3000
    assert await left(database) == []
    assert all(not figures(report)[2] for report in reports)


async def test_whatever_is_in_a_rejection_a_replay_comes_to_its_end(pool: Pool, database: asyncpg.Connection) -> None:
    payloads = [
        b"",
        b"\0",
        bytes(range(256)),
        b"[" * 100_000,
        b"[]",
        b"null",
        b"x" * 2_000_000,
        b'{"a":"\xed\xa0\x80"}',
    ]
    topics = [
        "",
        NO_TOPIC,
        "meters/m1/reading",
        "vehicles/v1/reading",
        "meters",
        "a/b/c",
        "\ud83d",
        "meters/\0/reading",
    ]
    given = [rejected(payload, reason, topic) for payload in payloads for topic in topics for reason in REASONS[:2]]
    await rejections.insert(database, given)
    report = await again(pool)
    assert report.rejections == len(given) == len(await left(database))
