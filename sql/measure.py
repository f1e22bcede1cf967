"""What pieces of time of devices come to: whole hours and days from the rollups, the rest from the history.

Rule: where a cell comes from never changes the answer. A cell of the rollups is used only if it is what the history
would give now: its hour is rolled up (and for a counter the next one is closed, which tells what was a glitch), no
late reading that is not rolled up yet reaches it, and it was made with the same POWER_MAX_KW. Everything else is
measured from the readings.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from operator import attrgetter, itemgetter
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.structs import fields

from sql.cells import Cell, Total, total
from sql.devices import EnergyMode
from sql.energy import BASE_S_MAX, Counter, Oddity, Series, count
from sql.hours import HOUR, day_ceiling, day_floor, hour_ceiling, hour_floor
from sql.pool import Connection
from sql.queries import query
from sql.store import Kind

BASE_REACH = timedelta(days=1)
"""How far before a piece, and the hour before it, a counter's readings are looked for at first,"""
BASE_REACH_MAX = timedelta(seconds=BASE_S_MAX)
"""and how far where there are none."""
SEQUEL_REACH = HOUR
"""How far behind a piece there may be readings that tell whether its last ones were a glitch."""
STEP_S_MAX = 5400.0
"""A longer time between two readings is a silence, and says nothing of the cadence."""
CADENCE_S = 60.0
"""Taken where nothing says anything of it."""
PIECES_A_QUERY = 500
PIECE_HOURS_A_QUERY = 12_000
"""Of which, in the worst case, all readings are looked at."""
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
"""No reading is older."""

Span: TypeAlias = tuple[datetime, datetime]
Record: TypeAlias = Any


class Piece(Struct, frozen=True):
    """A piece of time [start, end) of one device."""

    device_id: str
    energy_mode: EnergyMode
    start: datetime
    end: datetime


class RollupState(Struct, frozen=True):
    """How far the rollups of a kind have come: a row of the table."""

    closed_through: datetime
    rolled_through: datetime
    counted_through: datetime
    rolled_device: str
    kept_from: datetime
    power_max_kw: float


class _Part(Piece, frozen=True):
    """What of a piece comes from one place."""

    number: int
    """Of the piece."""


class _Run(Struct):
    """Parts of one device that adjoin, from the history: one question for all of them."""

    parts: list[_Part]
    starts: list[datetime]
    """Of the parts."""

    @property
    def device_id(self) -> str:
        return self.parts[0].device_id

    @property
    def end(self) -> datetime:
        return self.parts[-1].end

    def number(self, row: Record) -> int:
        """Of the piece in which a cell lies."""
        return self.parts[bisect_right(self.starts, row["first_ts"]) - 1].number


class _Plan(Struct):
    """Which parts come from where."""

    history: list[_Part]
    hours: list[_Part]
    days: list[_Part]


async def measure(connection: Connection, kind: Kind, pieces: Sequence[Piece], power_max_kw: float) -> list[Total]:
    """The total of each piece, in their order."""
    totals: list[Total] = []
    if not pieces:
        return totals
    state = await rollup_state(connection, kind)
    longest = max(piece.end - piece.start for piece in pieces)
    count = max(1, min(PIECES_A_QUERY, PIECE_HOURS_A_QUERY * HOUR // max(longest, HOUR)))
    for first in range(0, len(pieces), count):
        some = pieces[first : first + count]
        cells = await _find(connection, kind, some, state, power_max_kw)
        totals += [
            total(sorted(cells[n], key=_first_ts), piece.energy_mode, piece.start, piece.end)
            for n, piece in enumerate(some)
        ]
    return totals


def _first_ts(cell: Cell) -> datetime:
    return cell.first_ts


async def rollup_state(connection: Connection, kind: Kind) -> RollupState:
    """How far the rollups of the kind have come."""
    return RollupState(**await connection.fetchrow(query("get_rollup_state"), kind.name))


async def _find(
    connection: Connection, kind: Kind, pieces: Sequence[Piece], state: RollupState, power_max_kw: float
) -> dict[int, list[Cell]]:
    """The cells of each piece, by its number."""
    stale = await _stale(connection, kind, pieces, state, power_max_kw)
    plan = _plan(pieces, state, stale)
    found: dict[int, list[Cell]] = defaultdict(list)
    cell_of = _cell_of(kind)
    for (start, *cuts, end), runs in _alike(_runs(plan.history)).items():
        counters = {run.device_id: _counters(run.parts[0].energy_mode) for run in runs}
        run_of = {run.device_id: run for run in runs}
        for row in await measure_history(connection, kind, counters, start, end, power_max_kw, cuts):
            found[run_of[row["id"]].number(row)].append(cell_of(_CELL_DEFAULTS | row))
    for step, parts in (("hour", plan.hours), ("day", plan.days)):
        if parts:
            bounds = (min(part.start for part in parts), max(part.end for part in parts))
            for row in await connection.fetch(kind.query("find_cells", step=step), *_columns(parts), *bounds):
                found[parts[row["n"] - 1].number].append(cell_of(row))
    return found


async def measure_history(
    connection: Connection,
    kind: Kind,
    counters: Mapping[str, Collection[Counter]],
    start: datetime,
    end: datetime,
    power_max_kw: float,
    cuts: Sequence[datetime] = (),
) -> list[dict[str, Any]]:
    """The cells of some devices in [start, end) by UTC hour, from the history alone: columns as in the rollups' tables.

    Each device comes with the sorts of counter that it is to be read as, of which the columns are then there. Cells end
    at `cuts` too, which are in the order of time.
    """
    before = max(LONG_AGO, start - timedelta(seconds=STEP_S_MAX))
    limits = (before, STEP_S_MAX, CADENCE_S)
    rows = await connection.fetch(kind.query("measure_cells"), list(counters), start, end, *limits, cuts)
    cells = [dict(row) for row in rows]
    levels = await _read_counters(connection, kind, [name for name, own in counters.items() if own], start, end)
    counted: dict[tuple[str, Counter], Series] = {}
    seams = (start, *cuts, end)
    for cell in cells:
        seam = bisect_right(seams, cell["first_ts"])
        since_s = max(seams[seam - 1], cell["hour"]).timestamp()
        until_s = min(seams[seam], cell["hour"] + HOUR).timestamp()
        for counter in counters[cell["id"]]:
            key = (cell["id"], counter)
            if key not in counted:
                counted[key] = count(counter, *levels.get(cell["id"], ([], [])), power_max_kw)
            cell |= _counter_columns(counter, counted[key], since_s, until_s)
    return cells


async def _read_counters(
    connection: Connection, kind: Kind, device_ids: list[str], start: datetime, end: datetime
) -> dict[str, tuple[list[float], list[float]]]:
    """Unix seconds and kWh of the readings in [start, end) and of their neighbours."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for reach in (BASE_REACH, BASE_REACH_MAX):
        if device_ids:
            context = hour_floor(start) - HOUR
            bounds = (max(LONG_AGO, context - reach), end + SEQUEL_REACH)
            rows = await connection.fetch(kind.query("read_counters"), device_ids, context, end, *bounds)
            found |= {row["id"]: (row["times_s"], row["kwh"]) for row in rows}
            # The first reading for more than a day: what it counts since the one before lies further back.
            device_ids = [row["id"] for row in rows if row["times_s"][0] >= start.timestamp()]
    return found


def _counter_columns(counter: Counter, series: Series, start_s: float, end_s: float) -> dict[str, Any]:
    here = series.between(start_s, end_s)
    oddities = series.oddities[here] if any(series.oddities[here]) else ()
    return {
        f"kwh_{counter}": sum(series.kwh[here]),
        f"{counter}_impossible_steps": sum(Oddity.IMPOSSIBLE_STEP in oddity for oddity in oddities),
        f"{counter}_resets": sum(Oddity.RESET in oddity for oddity in oddities),
        f"{counter}_dips": sum(Oddity.DIP in oddity for oddity in oddities),
        f"{counter}_glitches": sum(Oddity.GLITCH in oddity for oddity in oddities),
    }


def _columns(pieces: Iterable[Piece]) -> tuple[list[str], list[datetime], list[datetime]]:
    """Pieces as the SQL takes them, which counts them from 1."""
    devices, starts, ends = [], [], []
    for piece in pieces:
        devices.append(piece.device_id)
        starts.append(piece.start)
        ends.append(piece.end)
    return devices, starts, ends


def _runs(parts: Iterable[_Part]) -> list[_Run]:
    """Parts, put together where they adjoin."""
    runs: list[_Run] = []
    for part in sorted(parts, key=attrgetter("device_id", "start")):
        if runs and (runs[-1].device_id, runs[-1].end) == (part.device_id, part.start):
            runs[-1].parts.append(part)
            runs[-1].starts.append(part.start)
        else:
            runs.append(_Run([part], [part.start]))
    return runs


def _alike(runs: Iterable[_Run]) -> dict[tuple[datetime, ...], list[_Run]]:
    """Runs by where their parts begin and end: one question for all devices. No device has two that are alike."""
    alike: dict[tuple[datetime, ...], list[_Run]] = defaultdict(list)
    for run in runs:
        alike[*run.starts, run.end].append(run)
    return alike


def _counters(energy_mode: EnergyMode) -> tuple[Counter, ...]:
    return () if energy_mode == "interval" else (energy_mode,)


_CELL_DEFAULTS = {one.name: one.default for one in fields(Cell) if not one.required}


@cache
def _cell_of(kind: Kind) -> Callable[[Record], Cell]:
    """Makes a cell of a row with all columns that a kind of device has; there may be many thousand rows."""
    names = [one.name for one in fields(Cell)]
    columns = itemgetter(*(name for name in names if name[-4:] != "_sum" or name.removesuffix("_sum") in kind.gauges))
    return lambda row: Cell(*columns(row))


async def _stale(
    connection: Connection, kind: Kind, pieces: Sequence[Piece], state: RollupState, power_max_kw: float
) -> dict[str, list[Span]]:
    """The hours of devices whose cells cannot be used, from the first to behind the last; under "" those of all."""
    end = min(state.rolled_through, max(piece.end for piece in pieces))
    if all(hour_ceiling(piece.start) >= end for piece in pieces):
        return {}
    if state.power_max_kw != power_max_kw:
        return {"": [(state.kept_from, state.rolled_through)]}
    devices = sorted({"", *(piece.device_id for piece in pieces)})
    marks = [(row["id"], row["hour"]) for row in await connection.fetch(kind.query("list_late_hours"), devices, end)]
    stale: dict[str, list[Span]] = defaultdict(list)
    for device_id, (first, behind) in await late_reach(connection, kind, marks, state.rolled_through):
        stale[device_id].append((max(first, state.kept_from), behind))
    return stale


async def late_reach(
    connection: Connection, kind: Kind, marks: Sequence[tuple[str, datetime]], rolled_through: datetime
) -> list[tuple[str, Span]]:
    """Which hours each late reading may have changed. Marks are devices and hours; without a device, of all devices.

    It changes what its neighbours count: up to three before it, within an hour; behind it those that take it, or one
    that it makes a glitch, for their base; and all in the hour in which the levels of these count.
    """
    reaches: list[tuple[str, Span]] = []
    for hour, device_ids in _by_hour(marks).items():
        if "" in device_ids:
            reaches.append(("", (hour - HOUR, rolled_through)))
            device_ids.remove("")
        if not device_ids:
            continue
        bounds = (hour + HOUR, min(hour + BASE_REACH_MAX, rolled_through))
        for row in await connection.fetch(kind.query("find_late_reach"), device_ids, *bounds):
            last_ts = row["last_ts"] or hour + HOUR
            reaches.append((row["id"], (hour - HOUR, hour_floor(last_ts + HOUR) + HOUR)))
    return reaches


def _by_hour(marks: Iterable[tuple[str, datetime]]) -> dict[datetime, list[str]]:
    by_hour: dict[datetime, list[str]] = defaultdict(list)
    for device_id, hour in marks:
        by_hour[hour].append(device_id)
    return by_hour


def _plan(pieces: Sequence[Piece], state: RollupState, stale: dict[str, list[Span]]) -> _Plan:
    plan = _Plan([], [], [])
    for number, piece in enumerate(pieces):
        unusable = stale.get("", []) + stale.get(piece.device_id, [])
        usable = state.rolled_through if piece.energy_mode == "interval" else state.counted_through
        first, last = hour_ceiling(piece.start), min(hour_floor(piece.end), usable)

        def add(parts: list[_Part], start: datetime, end: datetime, number: int = number, piece: Piece = piece) -> None:
            if start < end:
                parts.append(_Part(piece.device_id, piece.energy_mode, start, end, number))

        behind = piece.start
        for start, end in _without(first, last, unusable):
            add(plan.history, behind, start)
            first_day, last_day = day_ceiling(start), day_floor(end)
            if first_day < last_day:
                add(plan.hours, start, first_day)
                add(plan.days, first_day, last_day)
                add(plan.hours, last_day, end)
            else:
                add(plan.hours, start, end)
            behind = end
        add(plan.history, behind, piece.end)
    return plan


def _without(start: datetime, end: datetime, unusable: Sequence[Span]) -> Iterator[Span]:
    """What is left of [start, end), in the order of time."""
    for hole_start, hole_end in sorted(unusable):
        if start < min(hole_start, end):
            yield start, min(hole_start, end)
        start = max(start, hole_end)
    if start < end:
        yield start, end
