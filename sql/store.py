"""The write path: a batch of readings of one kind into history and live state, in one transaction.

A row is a plain tuple, because there are tens of thousands a second:
`(device, ts, value, ..., received_at, payload)`. Its columns but the last are those of the history table; the payload
(the bytes it was decoded from) stays with it, so that a row that cannot be stored can still be kept as a rejection.

Two ways lead into the table, and a batch first takes the fast one:

- `copy`: binary COPY of sorted rows, then the live upsert. All or nothing: one repeated key fails the batch. The rows
  are packed by `sql.columns`, since asyncpg takes thrice as long for them.
- `insert`: `unnest` with ON CONFLICT DO NOTHING. Says of each row whether it was stored, was there already
  (a duplicate) or contradicts what is there (a conflict: same device and time, other values).

Rows are sorted by key in both, so that two writers meet the same rows in the same order and do not deadlock. (COPY
writes each partition by itself, so two batches with the same keys on several days still may; the server then ends one,
which is tried again.)
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import date, datetime
from functools import cache
from operator import itemgetter
from typing import Any, TypeAlias

import msgspec

from sql.columns import Columns, columns_of, newest_of, pack
from sql.errors import Verdict, judge
from sql.hours import hour_floor
from sql.partitions import Days, days_between
from sql.pool import Connection, transaction
from sql.queries import query

Row: TypeAlias = tuple[Any, ...]

DAYS_MAX = 100
"""That one transaction touches."""

ISOLATION = "read_committed"
"""Whoever stores has to see which hours were closed while it did."""
LATE_MARKS_MAX = 1000
LATE_HOURS_MAX = 50
"""Of one batch with late readings: what many devices send after an outage is marked by the hour and not by the device,
but not what one device sends that was away for months."""

_device = itemgetter(0)
_key = itemgetter(0, 1)
_ts = itemgetter(1)


class Kind(msgspec.Struct, frozen=True, cache_hash=True):
    """One kind of device: its tables, its queries and the history's columns."""

    name: str
    columns: tuple[str, ...]

    @property
    def history_table(self) -> str:
        """The partitioned table of all readings."""
        return f"{self.name}_reading"

    @property
    def device_column(self) -> str:
        """The column with the id of the device, in all tables of the kind."""
        return self.columns[0]

    @property
    def kwh_column(self) -> str:
        """The history's column with the energy."""
        return next(column for column in self.columns if column.startswith("kwh"))

    @property
    def values(self) -> tuple[str, ...]:
        """The history's columns with what the device measured."""
        return self.columns[2:-1]

    @property
    def gauges(self) -> list[str]:
        """The history's columns whose value is a state at its time, and no energy."""
        return [column for column in self.values if column != self.kwh_column]

    def query(self, name: str, **more: str) -> str:
        """The text of `sql/queries/{name}.sql`, which is written for any kind of device, for this one.

        `{word}` stands for the names that the word means, and for those of `more`; `{r.word}` puts `r.` before each.
        """
        return _query_of(self, name, **more)


@cache
def _query_of(kind: Kind, name: str, **more: str) -> str:
    words = _words_of(kind) | {word: [meaning] for word, meaning in more.items()}

    def fill(found: re.Match[str]) -> str:
        return ", ".join((found[1] or "") + part for part in words[found[2]])

    return re.sub(r"\{(\w+\.)?(\w+)\}", fill, query(name))


def _words_of(kind: Kind) -> dict[str, Sequence[str]]:
    extremes = [(f"{gauge}_{extreme}", extreme, gauge) for gauge in kind.gauges for extreme in ("min", "max", "sum")]
    return {
        "kind": [kind.name],
        "device_id": [kind.device_column],
        "history": [kind.history_table],
        "kwh": [kind.kwh_column],
        "columns": kind.columns,
        "values": kind.values,
        "arrays": _parameters(kind, "timestamptz"),
        "arrays_us": _parameters(kind, "int8"),
        "bounds": [f"${len(kind.columns) + 1} AND ${len(kind.columns) + 2}"],
        "gauges": kind.gauges,
        "gauge_columns": [column for column, _, _ in extremes],
        "gauge_sums": [f"{gauge}_sum" for gauge in kind.gauges],
        "gauge_means": [f"sum({gauge}_sum) / sum(samples) AS {gauge}" for gauge in kind.gauges],
        "gauge_extremes": [f"{extreme}({gauge}) AS {column}" for column, extreme, gauge in extremes],
        "gauge_totals": [f"{extreme}({column}) AS {column}" for column, extreme, _ in extremes],
        "gauge_merges": [f"{extreme}({column})" for column, extreme, _ in extremes],
    }


def _parameters(kind: Kind, time_type: str) -> list[str]:
    """One array a column of the history, from $1 on."""
    types = ["text", time_type, *("float8" for _ in kind.values), time_type]
    return [f"${n}::{type_name}[]" for n, type_name in enumerate(types, start=1)]


METER = Kind("meter", ("meter_id", "ts", "kwh_consumed_ac", "voltage", "received_at"))
VEHICLE = Kind("vehicle", ("vehicle_id", "ts", "soc", "kwh_delivered_dc", "battery_temp", "received_at"))


class Sorted(msgspec.Struct):
    """Rows of one kind, ready for the table: ordered by key, each key once, with what fell out on the way."""

    rows: list[Row]
    duplicates: int
    """Rows that repeated another of the batch to the letter."""
    conflicts: list[Row]
    """Rows with the key of an earlier one of the batch and other values."""


class Inserted(msgspec.Struct):
    """What became of the rows that went the slow way."""

    stored: int
    duplicates: int
    conflicts: list[Row]


def sort(rows: list[Row]) -> Sorted:
    """Order rows by key and keep, of those that share one, the first that arrived. `rows` is sorted in place."""
    # Stable, so that rows with one key stay in the order of their arrival. Two sorts by one column each take half the
    # time of one by both: times come nearly in order, and texts are compared without looking at what they are.
    rows.sort(key=_ts)
    rows.sort(key=_device)
    if len(set(map(_device, rows))) == len(rows) or len(set(map(_key, rows))) == len(rows):
        return Sorted(rows, 0, [])
    return _without_repeats(rows)


def slices(rows: list[Row]) -> list[list[Row]]:
    """The rows in parts of at most DAYS_MAX days each: nearly always one.

    A transaction locks each partition that it touches. What a device sends in one message may lie on thousands of
    days, for which a server has no locks, however often it is tried.
    """
    first, last = _span(rows)
    if (last - first).days < DAYS_MAX:
        return [rows]
    by_day: dict[date, list[Row]] = {}
    for row in rows:
        by_day.setdefault(row[1].date(), []).append(row)
    days = sorted(by_day)
    return [[row for day in days[at : at + DAYS_MAX] for row in by_day[day]] for at in range(0, len(days), DAYS_MAX)]


def _without_repeats(rows: list[Row]) -> Sorted:
    kept: list[Row] = []
    duplicates, conflicts = 0, []
    for row in rows:
        if kept and _key(kept[-1]) == _key(row):
            if _values(kept[-1]) == _values(row):
                duplicates += 1
            else:
                conflicts.append(row)
        else:
            kept.append(row)
    return Sorted(kept, duplicates, conflicts)


async def copy(connection: Connection, kind: Kind, batch: Sorted, days: Days) -> None:
    """The fast way: all rows, or an error and none. The rows are committed when this returns."""
    await _ensure_days(connection, kind, batch.rows, days)
    columns = columns_of(batch.rows)
    async with transaction(connection, isolation=ISOLATION):
        await connection.copy_to_table(
            kind.history_table, source=memoryview(pack(columns)), columns=kind.columns, format="binary"
        )
        await _upsert_status(connection, kind, columns)
        await _mark_late(connection, kind, batch.rows)


async def insert(connection: Connection, kind: Kind, rows: list[Row], days: Days) -> Inserted:
    """The slow way: rows in key order, each key once. What is new is committed when this returns.

    A row that is in the table with its own time of receipt was stored by an earlier try whose commit was not
    answered, so it counts as stored and not as a duplicate.
    """
    days.forget(kind.history_table)
    await _ensure_days(connection, kind, rows, days)
    arrays = _arrays(kind, rows)
    repeats: dict[int, bool] = {}
    async with transaction(connection, isolation=ISOLATION):
        if await connection.fetchval(kind.query("insert_readings"), *arrays) < len(rows):
            first, last = _span(rows)
            found = await connection.fetch(kind.query("find_repeats"), *arrays, first, last)
            repeats = {repeat["n"] - 1: repeat["same"] for repeat in found}
        if fresh := [row for n, row in enumerate(rows) if n not in repeats]:
            await _upsert_status(connection, kind, columns_of(fresh))
            await _mark_late(connection, kind, fresh)
    conflicts = [rows[n] for n, same in repeats.items() if not same]
    return Inserted(len(fresh), len(repeats) - len(conflicts), conflicts)


async def _upsert_status(connection: Connection, kind: Kind, columns: Columns) -> None:
    await connection.execute(kind.query("upsert_status"), *newest_of(columns))


async def _mark_late(connection: Connection, kind: Kind, rows: list[Row]) -> None:
    """Mark the hours of these rows that were rolled up before they came (`sql.rollups` has the rule).

    The last thing before the commit: from here on nobody can close hours.
    """
    closed: datetime = await connection.fetchval(query("get_closed_through"), kind.name)
    late = {(row[0], hour_floor(row[1])) for row in rows if row[1] < closed}
    hours = {hour for _, hour in late}
    if len(late) > LATE_MARKS_MAX and len(hours) < LATE_HOURS_MAX:
        late = {("", hour) for hour in hours}
    if late:
        await connection.execute(kind.query("insert_late_hours"), *zip(*sorted(late), strict=True))


async def _ensure_days(connection: Connection, kind: Kind, rows: list[Row], days: Days) -> None:
    first, last = _span(rows)
    wanted = days_between(first, last)
    if len(wanted) > 2:  # a batch with old readings rarely has one of each day between
        wanted = list({day for row in rows for day in days_between(row[1], row[1])})
    await days.ensure(connection, kind.history_table, wanted)


def _span(rows: list[Row]) -> tuple[datetime, datetime]:
    return min(map(_ts, rows)), max(map(_ts, rows))


def _values(row: Row) -> Row:
    return row[2:-2]


def _arrays(kind: Kind, rows: list[Row]) -> list[Any]:
    """One array a column, as the slow way's `unnest` takes them."""
    return list(zip(*rows, strict=True))[: len(kind.columns)]


async def isolate(
    rows: list[Row], attempt: Callable[[list[Row]], Awaitable[Inserted]]
) -> tuple[Inserted, list[tuple[Row, Exception]]]:
    """Insert rows of which some may be at fault: halved until such a row stands alone, with its error.

    `attempt` is the slow way for some of the rows. What it raises is raised, unless it is a row's fault.
    """
    try:
        return await attempt(rows), []
    except Exception as error:
        if judge(error) is not Verdict.ROW:
            raise
        if len(rows) == 1:
            return Inserted(0, 0, []), [(rows[0], error)]
    middle = len(rows) // 2
    first, refused_first = await isolate(rows[:middle], attempt)
    second, refused_second = await isolate(rows[middle:], attempt)
    both = Inserted(
        first.stored + second.stored, first.duplicates + second.duplicates, first.conflicts + second.conflicts
    )
    return both, refused_first + refused_second
