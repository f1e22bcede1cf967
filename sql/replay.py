"""Rejections decoded again: what passes now is stored, what fails stays.

Rule, for each reading of a rejection:

| what it comes to | counts as | and the rejection |
| --- | --- | --- |
| it is decoded, and its device has no reading of that time | stored | is deleted |
| it is decoded, and the history has it with the same values | duplicate | is deleted |
| it is decoded, and the history has it with other values | rejected: `conflict` | stays |
| the database refuses it | rejected: `refused_by_database` | stays |
| it is not decoded | rejected, with the reason of now | stays |

Of a rejection that is an array of good and bad readings, the bad ones stay as rejections of their own.

A slice at a time: first its readings are committed, then its rejections are deleted. Whoever is killed in between
leaves rejections whose readings are there already, and the next replay finds duplicates. A dry run looks at the table
in the same way and changes nothing; it takes a reading that is in two slices for new in both, and it does not know what
the database would refuse.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Protocol, TypeAlias

from msgspec import Struct, field

from sql import rejections, store
from sql.partitions import Days
from sql.pool import Connection
from sql.rejections import Chosen, Kept, Position, Rejection
from sql.store import Kind, Row

SLICE_REJECTIONS = 2000
SLICE_BYTES = 8 * 1024 * 1024

STORED = "stored"
DUPLICATE = "duplicate"
CONFLICT = "conflict"
REFUSED = "refused_by_database"
_NOBODYS_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""A time of receipt that no reading has."""


class DecodedAgain(Protocol):
    """What decoding makes of a rejection."""

    @property
    def kind(self) -> Kind | None:
        """The kind of the rows."""

    @property
    def rows(self) -> Sequence[Row]:
        """Readings, as `sql.store` takes them."""

    @property
    def rejections(self) -> Sequence[Rejection]:
        """What is still wrong."""


Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[Connection]]
Decode: TypeAlias = Callable[[Kept], DecodedAgain]
Fates: TypeAlias = dict[int, str]
"""id() of a row -> STORED, DUPLICATE or the reason for which it stays."""


class Outcome(Struct, rename="camel"):
    """What came of the rejections of one reason, in readings but for `rejections`."""

    reason: str
    rejections: int = 0
    stored: int = 0
    duplicate: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason of now -> how many."""

    def add(self, fates: Iterable[str]) -> None:
        """Count the readings of one rejection."""
        self.rejections += 1
        for fate in fates:
            if fate == STORED:
                self.stored += 1
            elif fate == DUPLICATE:
                self.duplicate += 1
            else:
                self.rejected[fate] = self.rejected.get(fate, 0) + 1


class Report(Struct, rename="camel"):
    """What a replay did, or would do."""

    dry_run: bool
    rejections: int = 0
    """How many were looked at."""
    outcomes: list[Outcome] = field(default_factory=list)
    """By the reason of before."""
    next: str | None = None
    """Where to go on; null: all that was chosen was looked at."""

    def add(self, reason: str, fates: Iterable[str]) -> None:
        """Count a rejection."""
        self.rejections += 1
        outcome = next((outcome for outcome in self.outcomes if outcome.reason == reason), None)
        if outcome is None:
            outcome = Outcome(reason)
            self.outcomes.append(outcome)
        outcome.add(fates)


async def replay(
    connect: Connect,
    chosen: Chosen,
    decode: Decode,
    days: Days,
    *,
    dry_run: bool,
    limit: int,
    after: Position | None = None,
) -> Report:
    """Replay at most `limit` of the chosen rejections in the order of their receipt, those behind `after`.

    `connect` leases a connection for a slice. What it raises is raised; the slices before are done by then.
    """
    report = Report(dry_run)
    async with connect() as connection:
        # What a slice leaves of an array, and what is rejected meanwhile, is not met again: it would never end.
        last_id = await rejections.find_last_id(connection)
    while (left := limit - report.rejections) > 0:
        async with connect() as connection:
            kept = await rejections.fetch(connection, chosen, after, min(left, SLICE_REJECTIONS), SLICE_BYTES, last_id)
            await _replay_slice(connection, kept, decode, days, report)
        if not kept:
            return report
        after = kept[-1].position
    async with connect() as connection:
        report.next = str(after) if await rejections.fetch(connection, chosen, after, 1, 1, last_id) else None
    return report


async def _replay_slice(connection: Connection, slice_: list[Kept], decode: Decode, days: Days, report: Report) -> None:
    decoded = [decode(kept) for kept in slice_]
    rows: dict[Kind, list[Row]] = {}
    for each in decoded:
        if each.kind is not None and each.rows:
            rows.setdefault(each.kind, []).extend(each.rows)
    fates: Fates = {}
    for kind, some in rows.items():
        fates |= await _settle(connection, kind, some, days, dry_run=report.dry_run)
    deleted: list[int] = []
    remaining: list[Rejection] = []
    for kept, each in zip(slice_, decoded, strict=True):
        bad = _still_bad(kept, each, fates)
        report.add(
            kept.rejection.reason, [fates[id(row)] for row in each.rows] + [again.reason for again in each.rejections]
        )
        if len(bad) < len(each.rows) + len(each.rejections):
            deleted.append(kept.id)
            remaining += bad
    if deleted and not report.dry_run:
        await rejections.replace(connection, deleted, remaining)


def _still_bad(kept: Kept, decoded: DecodedAgain, fates: Fates) -> list[Rejection]:
    bad = [row for row in decoded.rows if fates[id(row)] not in (STORED, DUPLICATE)]
    rejected, detail = kept.rejection, "it was not stored when its array was replayed"
    return [
        *(Rejection(rejected.received_at, rejected.topic, fates[id(row)], detail, row[-1]) for row in bad),
        *decoded.rejections,
    ]


async def _settle(connection: Connection, kind: Kind, rows: list[Row], days: Days, *, dry_run: bool) -> Fates:
    """What becomes of each row; stored where it is new, unless this is a dry run."""
    fates = await _find_taken(connection, kind, rows)
    batch = store.sort([row for row in rows if id(row) not in fates])
    fates |= {id(row): CONFLICT for row in batch.conflicts}
    fates |= {id(row): STORED for row in batch.rows}
    if batch.rows and not dry_run:
        inserted, refused = await store.isolate(batch.rows, lambda some: store.insert(connection, kind, some, days))
        fates |= {id(row): CONFLICT for row in inserted.conflicts}  # another writer was faster
        fates |= {id(row): REFUSED for row, _ in refused}
    first = {_key(row): fates[id(row)] for row in batch.rows}
    for row in rows:  # what is left repeats another row of the slice to the letter
        if id(row) not in fates:
            fate = first[_key(row)]
            fates[id(row)] = DUPLICATE if fate == STORED else fate
    return fates


async def _find_taken(connection: Connection, kind: Kind, rows: list[Row]) -> Fates:
    """The fates of the rows whose key is in the history.

    Asked with a time of receipt that is nobody's. Their own may be that of the reading that has the key, which came in
    the same delivery; `store.insert` would take it for their own earlier try.
    """
    times = [row[1] for row in rows]
    asked = [(*row[:-2], _NOBODYS_TIME) for row in rows]
    found = await connection.fetch(kind.query("find_repeats"), *zip(*asked, strict=True), min(times), max(times))
    return {id(rows[taken["n"] - 1]): DUPLICATE if taken["same"] else CONFLICT for taken in found}


def _key(row: Row) -> tuple[str, datetime]:
    return row[0], row[1]
