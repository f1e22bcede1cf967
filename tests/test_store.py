"""The write path: sorting a batch, the fast way, the slow way, and live state, against a real database."""

import asyncio
import json
import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from sql import columns, store
from sql.columns import columns_of, newest_of
from sql.partitions import Days
from sql.store import (
    DAYS_MAX,
    METER,
    VEHICLE,
    Inserted,
    Kind,
    Row,
    Sorted,
    copy,
    insert,
    slices,
    sort,
)
from tests.conftest import Connect

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
AT = datetime(2024, 5, 1, 12, 0, 1, tzinfo=UTC)


def minutes(count: float) -> datetime:
    return NOON + timedelta(minutes=count)


def meter(device: str, ts: datetime, kwh: float = 1.0, at: datetime = AT, payload: bytes = b"") -> Row:
    return (device, ts, kwh, 230.0, at, payload)


def vehicle(device: str, ts: datetime, kwh: float = 1.0, at: datetime = AT) -> Row:
    return (device, ts, 50.0, kwh, 20.0, at, b"")


MAKE: dict[Kind, Callable[..., Row]] = {METER: meter, VEHICLE: vehicle}
kinds = pytest.mark.parametrize("kind", [METER, VEHICLE], ids=lambda kind: kind.name)


def later(seconds: float = 60) -> datetime:
    """The time of receipt of another try."""
    return AT + timedelta(seconds=seconds)


async def table(connection: asyncpg.Connection, name: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await connection.fetch(f"SELECT * FROM {name} ORDER BY 1, 2")]


async def history(connection: asyncpg.Connection, kind: Kind) -> list[tuple[Any, ...]]:
    return await table(connection, kind.history_table)


async def live(connection: asyncpg.Connection, kind: Kind) -> list[tuple[Any, ...]]:
    return await table(connection, f"{kind.name}_status")


def stored(rows: Iterable[Row]) -> list[tuple[Any, ...]]:
    """Rows as the history has them: without their payload, in key order."""
    return sorted((row[:-1] for row in rows), key=lambda row: row[:2])


# Sorting.


def test_rows_are_sorted_by_device_and_time() -> None:
    rows = [meter("b", minutes(0)), meter("a", minutes(2)), meter("B", minutes(0)), meter("a", minutes(1))]
    assert [row[:2] for row in sort(rows).rows] == [
        ("B", minutes(0)),
        ("a", minutes(1)),
        ("a", minutes(2)),
        ("b", minutes(0)),
    ]


async def test_the_order_of_devices_is_that_of_the_database(database: asyncpg.Connection) -> None:
    devices = ["a", "B", "b", "A-1", "A.1", "A_1", "A:1", "A1", "a" * 64, "0", "00"]
    theirs = await database.fetch('SELECT d FROM unnest($1::text[]) AS d ORDER BY d COLLATE "C"', devices)
    ours = sort([meter(device, NOON) for device in devices]).rows
    assert [row[0] for row in ours] == [row["d"] for row in theirs]


def test_the_newest_row_of_each_device_is_found_in_the_order_of_the_devices() -> None:
    rows = [meter(device, minutes(n)) for device, n in [("b", 3), ("a", 1), ("b", 1), ("a", 9), ("c", 0)]]
    devices, times, *_ = newest_of(columns_of(sort(rows).rows))
    assert devices == ["a", "b", "c"]
    assert [columns._EPOCH + timedelta(microseconds=time) for time in times] == [minutes(9), minutes(3), minutes(0)]


@pytest.mark.parametrize(
    ("kwh", "kept", "duplicates", "conflicts"),
    [
        ([1.0], 1.0, 0, []),
        ([1.0, 1.0], 1.0, 1, []),
        ([1.0, 1.0, 1.0], 1.0, 2, []),
        ([2.0, 1.0], 2.0, 0, [1.0]),
        ([1.0, 2.0], 1.0, 0, [2.0]),
        ([1.0, 2.0, 1.0, 2.0], 1.0, 1, [2.0, 2.0]),
    ],
)
def test_of_rows_with_one_key_the_first_that_arrived_is_kept(
    kwh: list[float], kept: float, duplicates: int, conflicts: list[float]
) -> None:
    same_key = [meter("m", NOON, value, payload=b"%d" % n) for n, value in enumerate(kwh)]
    around = [meter("z", NOON), meter("a", NOON), meter("m", minutes(1)), meter("m", minutes(-1))]

    batch = sort([around[0], around[2], *same_key, around[1], around[3]])

    assert [row[:3] for row in batch.rows] == [
        ("a", NOON, 1.0),
        ("m", minutes(-1), 1.0),
        ("m", NOON, kept),
        ("m", minutes(1), 1.0),
        ("z", NOON, 1.0),
    ]
    assert batch.rows[2][-1] == b"0"
    assert batch.duplicates == duplicates
    assert [row[2] for row in batch.conflicts] == conflicts
    assert newest_of(columns_of(batch.rows))[0] == ["a", "m", "z"]


def test_another_time_of_receipt_makes_no_conflict() -> None:
    assert sort([meter("m", NOON), meter("m", NOON, at=later())]).duplicates == 1


def test_an_ordinary_batch_is_one_slice_as_it_came() -> None:
    rows = [meter("b", minutes(0)), meter("a", NOON - timedelta(days=DAYS_MAX - 1))]
    assert slices(rows) == [rows]


def test_readings_of_very_many_days_are_stored_some_days_at_a_time() -> None:
    rows = [meter(f"m{n % 3}", NOON - timedelta(hours=17 * n)) for n in random.Random(1).sample(range(2000), 2000)]
    parts = slices(rows)
    assert len(parts) == 15  # 1417 days
    assert sorted(row for part in parts for row in part) == sorted(rows)
    days = [{row[1].date() for row in part} for part in parts]
    assert all(len(some) <= DAYS_MAX for some in days)
    assert sum(map(len, days)) == len(set.union(*days))


def test_nothing_sorted_is_nothing() -> None:
    assert sort([]) == Sorted([], 0, [])


# The fast way.


@kinds
async def test_copy_stores_history_and_live_state(database: asyncpg.Connection, kind: Kind) -> None:
    rows = [MAKE[kind](device, minutes(n), n / 3) for device in ("a", "b") for n in range(5)]
    random.Random(1).shuffle(rows)

    await copy(database, kind, sort(list(rows)), Days())

    assert await history(database, kind) == stored(rows)
    assert await live(database, kind) == stored(row for row in rows if row[1] == minutes(4))


@kinds
async def test_one_repeated_key_fails_the_whole_copy(database: asyncpg.Connection, kind: Kind) -> None:
    make = MAKE[kind]
    await copy(database, kind, sort([make("b", NOON)]), Days())
    before = await history(database, kind), await live(database, kind)

    with pytest.raises(asyncpg.UniqueViolationError):
        await copy(database, kind, sort([make(device, NOON, at=later()) for device in "abc"]), Days())

    assert (await history(database, kind), await live(database, kind)) == before


FLOATS = [0.1, 1 / 3, 0.1 + 0.2, 5e-324, 1e9, 123456789.12345679, 2**53 + 0.0, 1e-300, 0.0]


@pytest.mark.parametrize("way", ["copy", "insert"])
async def test_numbers_are_kept_to_the_last_digit(database: asyncpg.Connection, way: str) -> None:
    rows = [meter(f"m{n}", minutes(n), kwh) for n, kwh in enumerate(FLOATS)]
    if way == "copy":
        await copy(database, METER, sort(rows), Days())
    else:
        await insert(database, METER, rows, Days())

    assert [row[2] for row in await history(database, METER)] == FLOATS
    assert [row[2] for row in await live(database, METER)] == FLOATS


@kinds
@pytest.mark.parametrize("way", ["copy", "insert"])
async def test_times_are_kept_to_the_microsecond_and_ids_to_the_last_character(
    database: asyncpg.Connection, way: str, kind: Kind
) -> None:
    chance = random.Random(1)
    century_us = 100 * 365 * 86400 * 1_000_000
    letters = "abcXYZ019._:-"
    rows = [
        MAKE[kind](
            "".join(chance.choices(letters, k=length)),
            datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=chance.randrange(century_us)),
            at=datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=chance.randrange(century_us)),
        )
        for length in range(1, 65)
    ]
    for some in slices(rows):
        if way == "copy":
            await copy(database, kind, sort(some), Days())
        else:
            await insert(database, kind, sort(some).rows, Days())

    assert await history(database, kind) == stored(rows)
    assert await live(database, kind) == stored(rows)


@pytest.mark.parametrize("way", ["copy", "insert"])
async def test_a_batch_may_span_many_days(database: asyncpg.Connection, way: str) -> None:
    rows = [vehicle("v", NOON - timedelta(days=days)) for days in (0, 1, 40, 400, 4000, 8800)]
    if way == "copy":
        await copy(database, VEHICLE, sort(list(rows)), Days())
    else:
        await insert(database, VEHICLE, sort(list(rows)).rows, Days())

    assert await history(database, VEHICLE) == stored(rows)
    assert await live(database, VEHICLE) == stored(rows[:1])


# The slow way.


@kinds
async def test_insert_tells_stored_duplicate_and_conflict_apart(database: asyncpg.Connection, kind: Kind) -> None:
    make = MAKE[kind]
    await copy(database, kind, sort([make("b", NOON), make("c", NOON), make("d", NOON, at=later())]), Days())
    rows = [
        make("a", NOON, at=later()),  # new
        make("b", NOON, at=later()),  # a duplicate
        make("c", NOON, 2.0, at=later()),  # a conflict
        make("d", NOON, at=later()),  # stored by a try whose commit was not answered
        make("d", minutes(1), at=later()),  # new
    ]

    inserted = await insert(database, kind, rows, Days())

    assert inserted == Inserted(stored=3, duplicates=1, conflicts=[rows[2]])
    assert await history(database, kind) == stored([rows[0], make("b", NOON), make("c", NOON), rows[3], rows[4]])


async def test_each_value_counts_for_a_conflict(database: asyncpg.Connection) -> None:
    await insert(database, VEHICLE, [vehicle("v", NOON)], Days())
    for column in (2, 3, 4):
        row = list(vehicle("v", NOON, at=later()))
        row[column] += 1e-9
        assert await insert(database, VEHICLE, [tuple(row)], Days()) == Inserted(0, 0, [tuple(row)])


@kinds
async def test_doing_the_same_again_counts_the_same(database: asyncpg.Connection, kind: Kind) -> None:
    rows = [MAKE[kind](f"d{n:03}", minutes(n)) for n in range(200)]
    await copy(database, kind, sort(list(rows)), Days())
    for _ in range(3):
        assert await insert(database, kind, rows, Days()) == Inserted(200, 0, [])
    assert await history(database, kind) == stored(rows)


@kinds
async def test_live_state_moves_only_forward(database: asyncpg.Connection, kind: Kind) -> None:
    make, seconds = MAKE[kind], 0
    for minute, newest in [(5, 5), (3, 5), (7, 7), (6.999, 7), (7.0001, 7.0001)]:
        for way in ("copy", "insert"):
            row = make(way, minutes(minute), minute, at=later(seconds := seconds + 1))
            if way == "copy":
                await copy(database, kind, sort([row]), Days())
            else:
                await insert(database, kind, [row], Days())
        assert [row[:2] for row in await live(database, kind)] == [
            ("copy", minutes(newest)),
            ("insert", minutes(newest)),
        ]
    assert len(await history(database, kind)) == 10


@kinds
async def test_a_conflict_does_not_touch_live_state(database: asyncpg.Connection, kind: Kind) -> None:
    make = MAKE[kind]
    await insert(database, kind, [make("a", NOON), make("b", NOON)], Days())
    await database.execute(f"DELETE FROM {kind.name}_status WHERE {kind.name}_id = 'b'")

    rows = [make(device, NOON, 2.0, at=later()) for device in "ab"]
    assert (await insert(database, kind, rows, Days())).conflicts == rows

    assert await live(database, kind) == stored([make("a", NOON)])


@kinds
async def test_a_batch_of_repeats_alone_changes_nothing(database: asyncpg.Connection, kind: Kind) -> None:
    rows = [MAKE[kind](device, NOON) for device in "abc"]
    await insert(database, kind, rows, Days())
    before = await history(database, kind), await live(database, kind)
    again = [MAKE[kind](device, NOON, at=later()) for device in "abc"]

    assert await insert(database, kind, again, Days()) == Inserted(0, 3, [])
    assert (await history(database, kind), await live(database, kind)) == before


@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b"], ids=["NUL", "half a surrogate pair"])
async def test_what_text_cannot_hold_fails_the_batch_and_leaves_nothing(database: asyncpg.Connection, bad: str) -> None:
    rows = [meter("a", NOON), meter(bad, NOON), meter("c", NOON)]
    for work in (copy(database, METER, sort(list(rows)), Days()), insert(database, METER, rows, Days())):
        with pytest.raises((asyncpg.DataError, UnicodeEncodeError)):
            await work
    assert await history(database, METER) == []


async def test_a_partition_that_was_dropped_behind_our_back_comes_back_on_the_slow_way(
    database: asyncpg.Connection,
) -> None:
    days = Days()
    await copy(database, METER, sort([meter("a", NOON)]), days)
    await database.execute("DROP TABLE meter_reading_20240501")
    rows = [meter("a", minutes(1)), meter("b", minutes(1))]

    with pytest.raises(asyncpg.CheckViolationError):
        await copy(database, METER, sort(list(rows)), days)
    assert await insert(database, METER, rows, days) == Inserted(2, 0, [])
    await copy(database, METER, sort([meter("c", NOON)]), days)

    assert len(await history(database, METER)) == 3


# Several writers.


@kinds
async def test_two_writers_with_the_same_devices_do_not_deadlock(
    database: asyncpg.Connection, database_url: str, kind: Kind, connected: Connect
) -> None:
    others = random.Random(7)
    connections = [database, await connected(database_url)]
    for connection in connections:
        await connection.execute("SET deadlock_timeout = '10ms'")
    devices, rounds = 400, 25
    for number in range(rounds):
        batches = []
        for writer in range(2):
            rows = [MAKE[kind](f"d{n}", minutes(2 * number + writer)) for n in range(devices)]
            others.shuffle(rows)
            batches.append(sort(rows))
        await asyncio.gather(
            *(copy(connection, kind, batch, Days()) for connection, batch in zip(connections, batches, strict=True))
        )

    assert len(await history(database, kind)) == 2 * rounds * devices
    assert {row[1] for row in await live(database, kind)} == {minutes(2 * rounds - 1)}


@kinds
async def test_two_writers_with_the_same_readings_store_each_once(
    database: asyncpg.Connection, database_url: str, kind: Kind, connected: Connect
) -> None:
    connections = [database, await connected(database_url)]
    for connection in connections:
        await connection.execute("SET deadlock_timeout = '10ms'")
    devices, rounds = 400, 25
    counts = [0, 0]
    for number in range(rounds):
        batches = [
            [MAKE[kind](f"d{n:03}", minutes(number), at=later(writer)) for n in range(devices)] for writer in range(2)
        ]
        both = await asyncio.gather(
            *(insert(connection, kind, rows, Days()) for connection, rows in zip(connections, batches, strict=True))
        )
        assert not any(inserted.conflicts for inserted in both)
        counts[0] += sum(inserted.stored for inserted in both)
        counts[1] += sum(inserted.duplicates for inserted in both)

    assert counts == [rounds * devices, rounds * devices]
    assert len(await history(database, kind)) == rounds * devices


# The plan of the query that looks for repeats.


def _scans(plan: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if "Relation Name" in plan and plan["Actual Loops"]:
        yield plan
    for child in plan.get("Plans", []):
        yield from _scans(child)


def _literal(values: Iterable[Any]) -> str:
    return "'{" + ",".join(f'"{value}"' for value in values) + "}'"


@kinds
@pytest.mark.parametrize("plan_cache_mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("analyzed", [True, False], ids=["with statistics", "without statistics"])
async def test_repeats_are_found_by_index_and_only_in_the_partitions_of_the_batch(
    database: asyncpg.Connection, kind: Kind, plan_cache_mode: str, analyzed: bool
) -> None:
    make = MAKE[kind]
    rows = [make(f"d{n:03}", NOON - timedelta(days=day)) for n in range(300) for day in range(6)]
    await copy(database, kind, sort(rows), Days())
    if analyzed:
        await database.execute(f"ANALYZE {kind.history_table}")
    batch = [make(f"d{n:03}", NOON - timedelta(days=1 + n % 2), at=later()) for n in range(300)]
    arguments = [_literal(column) for column in store._arrays(kind, batch)]
    arguments += [f"'{NOON - timedelta(days=2)}'", f"'{NOON - timedelta(days=1)}'"]
    await database.execute(f"SET plan_cache_mode = {plan_cache_mode}")
    await database.execute(f"PREPARE find AS {kind.query('find_repeats').rstrip().removesuffix(';')}")

    answer = await database.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE find ({', '.join(arguments)})")

    (explained,) = json.loads(answer)
    assert explained["Plan"]["Actual Rows"] == 300
    scans = list(_scans(explained["Plan"]))
    assert {scan["Node Type"] for scan in scans} <= {"Index Scan", "Index Only Scan"}
    assert {scan["Relation Name"] for scan in scans} == {
        f"{kind.history_table}_20240429",
        f"{kind.history_table}_20240430",
    }
