"""Rollups: cells of whole hours and days, kept for longer than the readings they were made of.

Rule: a reading is either seen when its hour is rolled up, or it leaves a mark. In this order:

| who | does what |
| --- | --- |
| a writer | stores its rows; asks for `closed_through`, which stays until it has committed; marks hours before it |
| the roller closes | moves `closed_through` on between writers: each either was before and is seen, or sees it |
| the roller rolls | makes the cells from `rolled_through` to `closed_through`, some devices at a time |
| the roller mends | takes marks, and makes the cells anew that these readings reach |

Each step is a transaction of its own that first takes the turn, so that of several daemons one works at a time, any of
them goes on where the last one stopped, and none can be cut off in a state that the next does not understand.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter
from typing import Any, TypeVar, get_args

from sql.energy import Counter
from sql.hours import DAY, HOUR, day_floor, hour_floor
from sql.measure import LONG_AGO, Record, RollupState, late_reach, measure_history, rollup_state
from sql.partitions import DROP_LOCK_TIMEOUT, list_days
from sql.pool import Connection, transaction
from sql.queries import query
from sql.store import METER, VEHICLE, Kind
from sql.turn import take_turn

T = TypeVar("T")

KINDS = (METER, VEHICLE)
GRACE = timedelta(minutes=2)
"""How long after its end an hour stays open: what comes later costs a mark and a second look."""
CLOSE_LOCK_TIMEOUT = "1s"
DEVICES_A_STEP = 500
LATE_HOURS_A_STEP = 500
READINGS_A_STEP = 30_000
"""From which on a step has done enough: its transaction should last no longer than a second or two."""
READINGS_AT_ONCE = 3000
"""That many, roughly, are in memory together and counted while nothing else of the process runs: some 50 ms."""
COUNTERS: tuple[Counter, ...] = get_args(Counter)
COUNTED_COLUMNS = [
    *(f"kwh_{counter}" for counter in COUNTERS),
    *(f"{counter}_{oddity}" for counter in COUNTERS for oddity in ("impossible_steps", "resets", "dips", "glitches")),
]


def _turn(kind: Kind) -> str:
    return f"rollups of {kind.name}s"


def lag(state: RollupState, now: datetime) -> timedelta:
    """How far the rollups are behind what could be rolled up: nothing, as soon as all hours that have ended are."""
    return max(timedelta(), hour_floor(now - GRACE) - state.rolled_through)


async def step(connection: Connection, kind: Kind, now: datetime) -> bool:
    """Do the next bit of work for a kind, if there is any and nobody else is at it. Returns whether to ask again."""
    async with transaction(connection, isolation="read_committed"):  # each statement sees what is committed by then
        if not await take_turn(connection, _turn(kind)):
            return False
        state = await rollup_state(connection, kind)
        # More than an hour behind: there is no history between, so nothing more will tell what was a glitch before it.
        if state.rolled_through < state.closed_through or state.counted_through < state.rolled_through - HOUR:
            await _roll_on(connection, kind, state)
            return True
        if lag(state, now):
            await _close(connection, kind, state, hour_floor(now - GRACE))
            return True
        return await _mend(connection, kind, state)


async def _close(connection: Connection, kind: Kind, state: RollupState, target: datetime) -> None:
    """Close the hours up to `target`, or up to the end of the first UTC day that has any history."""
    await connection.execute(f"SET LOCAL lock_timeout = '{CLOSE_LOCK_TIMEOUT}'")
    await connection.execute(query("lock_rollups"))
    closed = state.closed_through
    days = sorted((await list_days(connection, kind.history_table)).values())
    first = next((day for day in days if day >= closed.date()), None)
    if first is None or first > target.date():
        rolled = closed = target
    else:
        rolled = max(closed, datetime(first.year, first.month, first.day, tzinfo=closed.tzinfo))
        closed = min(target, day_floor(rolled) + DAY)
    await connection.execute(query("close_hours"), kind.name, closed, rolled)


async def _roll_on(connection: Connection, kind: Kind, state: RollupState) -> None:
    """Roll up the next hour of the next devices; there are none left when all are done.

    What counters count in the last hour that is closed is not complete, since the next hour tells what was a glitch. So
    it is left out at first, and made with the hour after it.
    """
    start, end = state.rolled_through, min(state.rolled_through + HOUR, state.closed_through)
    is_last = start < end == state.closed_through

    async def roll_some(device_ids: Sequence[str]) -> int:
        readings = 0
        if state.counted_through < start:  # behind that hour there may be days without any history
            counted = state.counted_through + HOUR
            readings += await roll(connection, kind, device_ids, state.counted_through, counted, state.power_max_kw)
        if start < end:
            counters = () if is_last else COUNTERS
            readings += await roll(connection, kind, device_ids, start, end, state.power_max_kw, counters)
        return readings

    rows = await connection.fetch(kind.query("list_devices_after"), state.rolled_device, DEVICES_A_STEP)
    device_ids = [row["id"] for row in rows]
    if device_ids:
        done = await _in_parts(device_ids, roll_some)
        await connection.execute(query("advance_rollup"), kind.name, device_ids[done - 1])
    else:
        await connection.execute(query("finish_rollup"), kind.name, end, start if is_last else end)


async def _mend(connection: Connection, kind: Kind, state: RollupState) -> bool:
    """Roll up anew what late readings have changed. Returns whether there was any."""
    rows = await connection.fetch(kind.query("take_late_hours"), state.rolled_through, LATE_HOURS_A_STEP)
    marks = [(row["id"], row["hour"]) for row in rows]
    if not marks:
        return False
    of_all = [hour for device_id, hour in marks if not device_id]
    if of_all:
        await begin_anew(connection, kind, min(of_all) - HOUR, state.power_max_kw)
        await connection.execute(kind.query("delete_late_hours_from"), min(of_all), state.rolled_through)
    else:
        await _in_parts(marks, lambda some: _roll_late(connection, kind, some, state))
    return True


async def _in_parts(todo: Sequence[T], do: Callable[[Sequence[T]], Awaitable[int]]) -> int:
    """Do the first of what is to be done, a few at a time, until it is enough; returns how many are done.

    `do` returns how many readings these few had: a device may send once in a quarter of an hour or ten times a second.
    """
    done = readings = 0
    few = 1
    while done < len(todo) and readings < READINGS_A_STEP:
        some = todo[done : done + few]
        count = await do(some)
        done += len(some)
        readings += count
        few = max(1, min(8 * few, READINGS_AT_ONCE * len(some) // max(count, 1)))
    return done


async def begin_anew(connection: Connection, kind: Kind, start: datetime, power_max_kw: float) -> None:
    """Take nothing from the hour `start` on for rolled up. Until it is again, the history is read in its place."""
    await connection.execute(query("begin_rollup_anew"), kind.name, start, power_max_kw)


async def _roll_late(
    connection: Connection, kind: Kind, marks: Sequence[tuple[str, datetime]], state: RollupState
) -> int:
    """Roll up anew what these late readings reach. Returns how many readings that was."""
    # The marks go first: a reading that comes after this has been seen leaves another.
    await connection.execute(kind.query("delete_late_hours"), *zip(*marks, strict=True))
    first_hours: dict[tuple[str, datetime], datetime] = {}
    for device_id, (start, end) in await late_reach(connection, kind, marks, state.rolled_through):
        for hour in _first_hours(max(start, state.kept_from), min(end, state.rolled_through)):
            key = (device_id, day_floor(hour))
            first_hours[key] = min(hour, first_hours.get(key, hour))
    devices_of = defaultdict(list)
    for (device_id, day), hour in first_hours.items():
        devices_of[hour, day].append(device_id)
    readings = 0
    for (hour, day), device_ids in sorted(devices_of.items()):
        end = min(day + DAY, state.rolled_through)
        readings += await roll(connection, kind, sorted(device_ids), hour, end, state.power_max_kw)
    return readings


def _first_hours(start: datetime, end: datetime) -> Iterator[datetime]:
    """Of each UTC day that [start, end) touches the first hour in it."""
    while start < end:
        yield start
        start = day_floor(start) + DAY


async def roll(
    connection: Connection,
    kind: Kind,
    device_ids: Sequence[str],
    start: datetime,
    end: datetime,
    power_max_kw: float,
    counters: Sequence[Counter] = COUNTERS,
) -> int:
    """Make the cells of some devices' hours in [start, end) anew, and of the day, if it ends there.

    `start` and `end` are full hours of one UTC day. What the day comes to by each hour is added up from its beginning,
    so `end` is the end of the day, or of what is rolled up of it. Returns how many readings the cells have.
    """
    day = day_floor(start)
    cells = await measure_history(connection, kind, dict.fromkeys(device_ids, counters), start, end, power_max_kw)
    before = await connection.fetch(kind.query("find_hours_before"), device_ids, day, start)
    records = list(_with_days_so_far(cells, before))
    await connection.execute(kind.query("delete_hour_cells"), device_ids, start, end)
    if records:
        await connection.execute("SELECT ensure_month($1, $2)", f"{kind.name}_hour", day.date())
        await connection.copy_records_to_table(
            f"{kind.name}_hour",
            columns=[kind.device_column if name == "id" else name for name in records[0]],
            records=[tuple(record.values()) for record in records],
        )
    if end == day + DAY:
        await connection.execute(kind.query("delete_day_cells"), device_ids, day)
        await connection.execute(kind.query("insert_day_cells"), device_ids, day, end)
    return sum(cell["samples"] for cell in cells)


def _with_days_so_far(cells: list[dict[str, Any]], before: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """The cells in order, each with what its day comes to by its end. `before` has the hour before of each device."""
    so_far = {row["id"]: dict(row) for row in before}
    for cell in sorted(cells, key=itemgetter("id", "hour")):
        for name in COUNTED_COLUMNS:
            cell.setdefault(name, 0)
        earlier = so_far.get(cell["id"])
        covered_s = cell["covered_s"]
        if earlier is not None:
            silence_s = (cell["first_ts"] - earlier["last_ts"]).total_seconds()
            covered_s += earlier["day_covered_s"]
            covered_s += min(silence_s, earlier["last_cadence_s"] + cell["first_cadence_s"])
        cell["lead_s"] = (cell["first_ts"] - cell["hour"]).total_seconds()
        cell["trail_s"] = (cell["hour"] + HOUR - cell["last_ts"]).total_seconds()
        day_lead_s = (cell["first_ts"] - day_floor(cell["hour"])).total_seconds()
        cell["day_lead_s"] = day_lead_s if earlier is None else earlier["day_lead_s"]
        cell["day_first_cadence_s"] = cell["first_cadence_s"] if earlier is None else earlier["day_first_cadence_s"]
        cell["day_covered_s"] = covered_s
        for name in ("kwh_interval", "kwh_register", "kwh_session"):
            cell[f"day_{name}"] = cell[name] + (0.0 if earlier is None else earlier[f"day_{name}"])
        so_far[cell["id"]] = cell
        yield cell


async def agree_on_power(connection: Connection, kind: Kind, power_max_kw: float) -> float:
    """The POWER_MAX_KW that the cells are made with: the given one, as long as nothing was rolled up with another."""
    return float(await connection.fetchval(query("agree_on_power"), kind.name, power_max_kw, LONG_AGO))


async def rebuild(
    connection: Connection, kind: Kind, after: str, start: datetime, power_max_kw: float
) -> list[str] | None:
    """Make the cells of the next devices behind `after` anew, from the hour `start` to the end of its UTC day.

    Returns these devices, none at the end; None where somebody else is at it. What is not rolled up yet, and hours
    whose readings were dropped, stay as they are.
    """
    async with transaction(connection, isolation="read_committed"):  # each statement sees what is committed by then
        if not await take_turn(connection, _turn(kind)):
            return None
        state = await rollup_state(connection, kind)
        if state.rolled_device:
            return None  # devices that have the next hour already would keep what they built on this one
        start, end = max(start, state.kept_from), min(day_floor(start) + DAY, state.rolled_through)
        if start >= end:
            return []
        rows = await connection.fetch(kind.query("list_devices_after"), after, DEVICES_A_STEP)
        device_ids = [row["id"] for row in rows]
        done = await _in_parts(device_ids, lambda some: roll(connection, kind, some, start, end, power_max_kw))
        return device_ids[:done]


async def restart(connection: Connection, kind: Kind, start: datetime, power_max_kw: float) -> bool:
    """Begin anew from the hour `start` on with this POWER_MAX_KW; False where somebody else is at it."""
    async with transaction(connection):
        if not await take_turn(connection, _turn(kind)):
            return False
        await begin_anew(connection, kind, start, power_max_kw)
        return True


async def count_late(connection: Connection, kind: Kind) -> int:
    """How many marks of late readings wait: devices and hours, or hours of all devices."""
    return int(await connection.fetchval(kind.query("count_late_hours")))


async def count_devices(connection: Connection, kind: Kind) -> int:
    """How many devices of the kind have ever sent a reading."""
    return int(await connection.fetchval(kind.query("count_devices")))


async def first_day_needed(connection: Connection, kind: Kind) -> date:
    """The first UTC day whose readings are still to be rolled up: no earlier day's are needed any more."""
    earliest: datetime = await connection.fetchval(kind.query("find_first_hour_needed"), kind.name)
    return earliest.date()


async def keep_history_from(connection: Connection, kind: Kind, day: date) -> None:
    """Let the cells of the days before stay as they are from now on: their readings are about to be dropped."""
    await connection.execute(query("keep_history_from"), kind.name, datetime(day.year, day.month, day.day, tzinfo=UTC))


async def drop_cells_before(connection: Connection, kind: Kind, day: date) -> int:
    """Drop the cells of all whole months before that of `day`, and of the days in them. Returns how many months."""
    first_month = day.replace(day=1)
    dropped = 0
    for row in await connection.fetch(query("month_partitions"), f"{kind.name}_hour"):
        if row["month"] < first_month:
            for n in range(31):  # a day each: all at once would hold its locks for long
                end = datetime(row["month"].year, row["month"].month, 1, tzinfo=UTC) + (n + 1) * DAY
                await connection.execute(kind.query("delete_days_before"), min(end, _next_month(row["month"])))
            async with transaction(connection):
                await connection.execute(f"SET LOCAL lock_timeout = '{DROP_LOCK_TIMEOUT}'")
                if not await take_turn(connection, _turn(kind)):
                    break
                await connection.execute(f'DROP TABLE IF EXISTS "{row["partition"]}"')
            dropped += 1
    return dropped


def _next_month(month: date) -> datetime:
    following = (month.replace(day=1) + timedelta(days=31)).replace(day=1)
    return datetime(following.year, following.month, 1, tzinfo=UTC)
