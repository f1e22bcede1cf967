"""Readings over HTTP: the decoding and the store are the daemon's; this file cuts, counts and reports.

A body is read, decoded and stored a batch at a time, so that memory does not grow with it; while a batch is stored the
client waits. What was committed stays, also where the request fails later: readings that carry their time may be sent
again as often as one likes, since the table knows them.
"""

from typing import Any

import asyncpg
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from api import bodies
from api.auth import Role
from api.contract import JSON, NDJSON, Answer, Call, Operation, Sidecar, answer
from api.errors import BadItem, IngestReport, ProblemError
from api.ingest_schema import BODY_MEDIA
from api.items import Cutter, Lines, Values
from api.params import NoQuery
from daemon.readings import NO_TOPIC, Reason, Receipt, Rules, decode_item, topic_of
from sql import rejections, store
from sql.errors import sqlstate
from sql.pool import Connection
from sql.rejections import Rejection
from sql.store import Kind, Row

BATCH_ROWS = 4000
BATCH_BYTES = 2 * 1024 * 1024
ITEMS_MAX = 2_000_000
"""Of one body. Bounds what a body of nothing but commas costs."""
ERRORS_SHOWN_MAX = 100
TRIES = 3
"""For rows that met a deadlock or the like."""
ROLLBACK_CLASS = "40"

CUTTERS: dict[str, type[Cutter]] = {
    JSON: Values,
    NDJSON: Lines,
    "application/ndjson": Lines,
    "application/jsonl": Lines,
}


class Batch:
    """Items that are decoded and not stored yet."""

    def __init__(self, receipt: Receipt) -> None:
        self.receipt = receipt
        self.rows: dict[Kind, list[Row]] = {}
        self.rejections: list[tuple[int, Rejection]] = []
        self.items = 0
        self.bytes = 0
        self._index_of: dict[int, int] = {}

    def take(self, item: bytes, index: int) -> None:
        """Decode an item."""
        decoded = decode_item(item, self.receipt)
        self.items += 1
        self.bytes += len(item)
        for row in decoded.rows:
            assert decoded.kind is not None  # noqa: S101 - rows have a kind
            self.rows.setdefault(decoded.kind, []).append(row)
            self._index_of[id(row)] = index
        self.rejections += [(index, rejection) for rejection in decoded.rejections]

    def refuse(self, index: int, reason: Reason, detail: str, payload: bytes) -> None:
        """Take an item that is bad before anybody decodes it."""
        self.items += 1
        self.rejections.append((index, Rejection(self.receipt.at, NO_TOPIC, reason, detail, payload)))

    def index_of(self, row: Row) -> int:
        """The place in the body that a row of this batch came from."""
        return self._index_of[id(row)]

    @property
    def is_full(self) -> bool:
        """Whether it should be stored before more is read."""
        return self.items >= BATCH_ROWS or self.bytes >= BATCH_BYTES


class Tally(Struct):
    """What became of the items so far."""

    stored: int = 0
    duplicate: int = 0
    rejected: int = 0
    errors: list[BadItem] = []

    def add(self, other: "Tally") -> None:
        """Count what a batch came to."""
        self.stored += other.stored
        self.duplicate += other.duplicate
        self.rejected += other.rejected
        shown = sorted(other.errors, key=lambda error: error.index)
        self.errors = [*self.errors, *shown][:ERRORS_SHOWN_MAX]

    @property
    def report(self) -> IngestReport:
        """As the client sees it."""
        received = self.stored + self.duplicate + self.rejected
        omitted = self.rejected - len(self.errors)
        return IngestReport(received, self.stored, self.duplicate, self.rejected, self.errors, omitted)


class Intake:
    """Takes the items of one body to the table."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        settings = sidecar.settings
        self._rules = Rules(clock_ahead_max=settings.clock_ahead_max, retention=settings.retention)
        self._batch = self._new_batch()
        self._items = 0
        self.tally = Tally()

    async def take(self, items: list[bytes]) -> None:
        """Take items; stores what is there when it is enough."""
        for item in items:
            self._batch.take(item, self._items)
            self._items += 1
            if self._batch.is_full:
                await self.store()
        if self._items > ITEMS_MAX:
            raise ProblemError(413, f"The body has too many readings; allowed: {ITEMS_MAX}")

    def refuse(self, reason: Reason, detail: str, payload: bytes) -> None:
        """Take what is no item."""
        self._batch.refuse(self._items, reason, detail, payload)
        self._items += 1

    async def store(self) -> None:
        """Commit what is there and count it."""
        batch, self._batch = self._batch, self._new_batch()
        if not batch.items:
            return
        settled = Tally()
        try:
            await _store(self._sidecar, batch, settled)
        finally:  # what was committed before a failure is told too
            self.tally.add(settled)
            for result, count in (
                ("stored", settled.stored),
                ("duplicate", settled.duplicate),
                ("rejected", settled.rejected),
            ):
                self._sidecar.metrics.readings(result, count)

    def _new_batch(self) -> Batch:
        # Each batch has a time of receipt of its own, by which the store tells its rows from anybody else's.
        return Batch(Receipt(self._rules, self._sidecar.clock))


async def ingest(call: Call[NoQuery, NoQuery, None]) -> Response:
    """Take one reading, an array or NDJSON."""
    media_type = bodies.check_media_type(call.request, tuple(CUTTERS))
    cutter = CUTTERS[media_type]()
    intake = Intake(call.sidecar)
    try:
        await _read(call, cutter, intake)
        await intake.store()
    except ProblemError as error:
        raise _with_report(error, intake.tally) from error
    return _answer(intake.tally)


async def _read(call: Call[NoQuery, NoQuery, None], cutter: Cutter, intake: Intake) -> None:
    async for piece in bodies.pieces(call.request, call.sidecar.settings.api_body_bytes_max):
        await intake.take(cutter.feed(piece))
        if cutter.dead:
            break
    else:
        await intake.take(cutter.finish())
    if cutter.dead:
        intake.refuse(cutter.dead.reason, cutter.dead.detail, cutter.dead.payload)


def _answer(tally: Tally) -> Response:
    report = tally.report
    if not report.received:
        raise ProblemError(422, "The body holds no reading", report=report)
    if report.rejected == report.received:
        raise ProblemError(422, f"No reading is good; the first: {report.errors[0].detail}", report=report)
    return answer(report, 200 if report.rejected else 201)


def _with_report(error: ProblemError, tally: Tally) -> ProblemError:
    """A request that fails in its middle says what was stored before."""
    report = tally.report
    return ProblemError(error.status, error.detail, error.headers, **{"report": report, **error.members})


async def _store(sidecar: Sidecar, batch: Batch, tally: Tally) -> None:
    """Commit a batch, one kind after the other, then its rejections; `tally` has what is committed, at any moment."""
    errors = [_shown(index, rejection) for index, rejection in batch.rejections]
    bad = [rejection for _, rejection in batch.rejections]
    async with sidecar.database.connection() as connection:
        parts = [(kind, part) for kind, rows in batch.rows.items() for part in store.slices(rows)]
        for kind, part in parts:
            for row, reason, detail in await _store_kind_patiently(connection, sidecar, kind, part, tally):
                *_, received_at, payload = row
                rejection = Rejection(received_at, topic_of(kind, row[0]), reason, detail, payload)
                bad.append(rejection)
                errors.append(_shown(batch.index_of(row), rejection))
        if kept := sidecar.flood.keep(bad):
            await rejections.insert(connection, kept)
    tally.rejected, tally.errors = len(bad), errors


async def _store_kind_patiently(
    connection: Connection, sidecar: Sidecar, kind: Kind, rows: list[Row], tally: Tally
) -> list[tuple[Row, Reason, str]]:
    for _ in range(TRIES - 1):
        try:
            return await _store_kind(connection, sidecar, kind, rows, tally)
        except asyncpg.PostgresError as error:
            if not sqlstate(error).startswith(ROLLBACK_CLASS):
                raise
    return await _store_kind(connection, sidecar, kind, rows, tally)


async def _store_kind(
    connection: Connection, sidecar: Sidecar, kind: Kind, rows: list[Row], tally: Tally
) -> list[tuple[Row, Reason, str]]:
    """Store the rows of one kind; returns those that were not, with the reason."""
    batch = store.sort(list(rows))
    conflicts = batch.conflicts
    refused: list[tuple[Row, Exception]] = []
    duplicates, stored = batch.duplicates, len(batch.rows)
    try:
        await store.copy(connection, kind, batch, sidecar.days)
    except Exception:  # whatever COPY says, the slow way's error is the one that counts
        if connection.is_closed():
            raise
        inserted, refused = await store.isolate(
            batch.rows, lambda some: store.insert(connection, kind, some, sidecar.days)
        )
        stored = inserted.stored
        duplicates += inserted.duplicates
        conflicts = conflicts + inserted.conflicts
    tally.stored += stored
    tally.duplicate += duplicates
    return [(row, "conflict", _conflict(row)) for row in conflicts] + [
        (row, "refused_by_database", f"{sqlstate(error)}: {error}") for row, error in refused
    ]


def _conflict(row: Row) -> str:
    return f"{row[0]} has another reading at {row[1].isoformat()}, with other values; the first one stays"


def _shown(index: int, rejection: Rejection) -> BadItem:
    return BadItem(index, rejection.reason, rejection.detail[: rejections.DETAIL_CHARACTERS_MAX])


_REPORT = IngestReport(2, 2, 0, 0, [], 0)
_MIXED = replace(_REPORT, stored=1, rejected=1, errors=[BadItem(1, "out_of_range", "`soc` is 101; allowed: 0 to 100")])

_COMMON: dict[str, Any] = {
    "method": "POST",
    "tag": "Readings",
    "summary": "Store readings",
    "description": (
        "One reading, an array of readings, or NDJSON (a reading a line). The kind is told by `type` or by the fields. "
        "Answered after the commit. A reading that is there already with the same values counts as a duplicate, which "
        "is no error, so a request may be sent again. `application/ndjson` and `application/jsonl` are taken as well."
    ),
    "handler": ingest,
    "role": Role.write,
    "body_media": BODY_MEDIA,
    "answers": {
        200: Answer("Some readings are stored or were there already, some are bad", IngestReport, {JSON: _MIXED}),
        201: Answer("All readings are stored or were there already", IngestReport, {JSON: _REPORT}),
    },
}
OPERATIONS = (
    Operation(id="ingest", path="/ingest", **_COMMON),
    Operation(id="telemetry", path="/telemetry", **_COMMON),
)
