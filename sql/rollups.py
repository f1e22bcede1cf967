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
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter
from typing import Any, get_args

from sql.energy import Counter
from sql.hours import DAY, HOUR, day_floor, hour_floor
from sql.measure import LONG_AGO, Record, RollupState, late_reach, measure_history, rollup_state
from sql.partitions import DROP_LOCK_TIMEOUT, list_days
from sql.pool import Connection, transaction
from sql.queries import query
from sql.store import METER, VEHICLE, Kind
from sql.turn import take_turn

ROLLUPS = "rollups"
KINDS = (METER, VEHICLE)
GRACE = timedelta(minutes=2)
"""How long after its end an hour stays open: what comes later costs a mark and a second look."""
CLOSE_LOCK_TIMEOUT = "1s"
DEVICE_HOURS_A_STEP = 200
"""What one step rolls up, roughly: some ten thousand readings, counted while nothing else of the process runs."""
LATE_HOURS_A_STEP = 500
MARKS_A_STATEMENT = 10_000


def lag(state: RollupState, now: datetime) -> timedelta:
    """How far the rollups are behind what could be rolled up: nothing, as soon as all hours that have ended are."""
    return max(timedelta(), hour_floor(now - GRACE) - state.rolled_through)


async def step(connection: Connection, kind: Kind, now: datetime) -> bool:
    """Do the next bit of work for a kind, if there is any and nobody else is at it. Returns whether to ask again."""
    async with transaction(connection):
        if not await take_turn(connection, ROLLUPS):
            return False
        state = await rollup_state(connection, kind)
        if state.rolled_through < state.closed_through:
            await _roll_on(connection, kind, state)
            return True
        if lag(state, now):
            await _close(connection, kind, state, hour_floor(now - GRACE))
            return True
        return await _mend(connection, kind, state)


async def _close(connection: Connection, kind: Kind, state: RollupState, target: datetime) -> None:
    """Close the next hour before `target`, of the days that have any history.

    One at a time, also where there are many: an hour's cells then lie side by side on the disk.
    """
    await connection.execute(f"SET LOCAL lock_timeout = '{CLOSE_LOCK_TIMEOUT}'")
    await connection.execute(query("lock_rollups"))
    closed = state.closed_through
    days = sorted((await list_days(connection, kind.history_table)).values())
    first = next((day for day in days if day >= closed.date()), None)
    if first is None or first > target.date():
        rolled = closed = target
    else:
        rolled = max(closed, datetime(first.year, first.month, first.day, tzinfo=closed.tzinfo))
        closed = min(target, rolled + HOUR)
    await connection.execute(query("close_hours"), kind.name, closed, rolled)


async def _roll_on(connection: Connection, kind: Kind, state: RollupState) -> None:
    """Roll up the next devices; there are none left when all are done."""
    start, end = state.rolled_through, state.closed_through
    limit = max(1, DEVICE_HOURS_A_STEP * HOUR // (end - start))
    rows = await connection.fetch(kind.query("list_devices_after"), state.rolled_device, limit)
    if rows:
        await roll(connection, kind, [row["id"] for row in rows], start, end, state.power_max_kw)
        await connection.execute(query("advance_rollup"), kind.name, rows[-1]["id"])
    else:
        await connection.execute(query("finish_rollup"), kind.name)


async def _mend(connection: Connection, kind: Kind, state: RollupState) -> bool:
    """Roll up anew what late readings have changed. Returns whether there was any."""
    rows = await connection.fetch(kind.query("take_late_hours"), state.rolled_through, LATE_HOURS_A_STEP)
    marks = [(row["id"], row["hour"]) for row in rows]
    if not marks:
        return False
    of_all = [hour for device_id, hour in marks if not device_id]
    if of_all:
        await _mark_each(connection, kind, of_all[0])
        marks = [("", of_all[0])]
    # The marks go first: a reading that comes after this has been seen leaves another.
    await connection.execute(kind.query("delete_late_hours"), *zip(*marks, strict=True))
    if not of_all:
        await _roll_late(connection, kind, marks, state)
    return True


async def _mark_each(connection: Connection, kind: Kind, hour: datetime) -> None:
    """Mark an hour for every device that there is."""
    device_ids = [""]
    while device_ids:
        rows = await connection.fetch(kind.query("list_devices_after"), device_ids[-1], MARKS_A_STATEMENT)
        device_ids = [row["id"] for row in rows]
        await connection.execute(kind.query("insert_late_hours"), device_ids, [hour] * len(device_ids))


async def _roll_late(
    connection: Connection, kind: Kind, marks: Sequence[tuple[str, datetime]], state: RollupState
) -> None:
    first_hours: dict[tuple[str, datetime], datetime] = {}
    for device_id, (start, end) in await late_reach(connection, kind, marks, state.rolled_through):
        for hour in _first_hours(max(start, state.kept_from), min(end, state.rolled_through)):
            key = (device_id, day_floor(hour))
            first_hours[key] = min(hour, first_hours.get(key, hour))
    devices_of = defaultdict(list)
    for (device_id, day), hour in first_hours.items():
        devices_of[hour, day].append(device_id)
    for (hour, day), device_ids in sorted(devices_of.items()):
        await roll(connection, kind, sorted(device_ids), hour, min(day + DAY, state.rolled_through), state.power_max_kw)


def _first_hours(start: datetime, end: datetime) -> Iterator[datetime]:
    """Of each UTC day that [start, end) touches the first hour in it."""
    while start < end:
        yield start
        start = day_floor(start) + DAY


async def roll(
    connection: Connection, kind: Kind, device_ids: Sequence[str], start: datetime, end: datetime, power_max_kw: float
) -> None:
    """Make the cells of some devices' hours in [start, end) anew, and of the day, if it ends there.

    `start` and `end` are full hours of one UTC day. What the day comes to by each hour is added up from its beginning,
    so `end` is the end of the day, or of what is rolled up of it.
    """
    day = day_floor(start)
    counters = dict.fromkeys(device_ids, get_args(Counter))
    cells = await measure_history(connection, kind, counters, start, end, power_max_kw)
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


def _with_days_so_far(cells: list[dict[str, Any]], before: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """The cells in order, each with what its day comes to by its end. `before` has the hour before of each device."""
    so_far = {row["id"]: dict(row) for row in before}
    for cell in sorted(cells, key=itemgetter("id", "hour")):
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

    Returns these devices, none at the end; None where somebody else has the turn. What is not rolled up yet, and hours
    whose readings were dropped, stay as they are.
    """
    async with transaction(connection):
        if not await take_turn(connection, ROLLUPS):
            return None
        state = await rollup_state(connection, kind)
        start, end = max(start, state.kept_from), min(day_floor(start) + DAY, state.rolled_through)
        if start >= end:
            return []
        limit = max(1, DEVICE_HOURS_A_STEP * HOUR // (end - start))
        rows = await connection.fetch(kind.query("list_devices_after"), after, limit)
        device_ids = [row["id"] for row in rows]
        if device_ids:
            await roll(connection, kind, device_ids, start, end, power_max_kw)
        return device_ids


async def set_power(connection: Connection, kind: Kind, power_max_kw: float) -> None:
    """From now on cells are made with this POWER_MAX_KW. Those that are there are to be made anew."""
    await connection.execute(query("set_rollup_power"), kind.name, power_max_kw)


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
            async with transaction(connection):
                await connection.execute(f"SET LOCAL lock_timeout = '{DROP_LOCK_TIMEOUT}'")
                if not await take_turn(connection, ROLLUPS):
                    break
                await connection.execute(f'DROP TABLE IF EXISTS "{row["partition"]}"')
                month_end = (row["month"] + timedelta(days=31)).replace(day=1)
                end = datetime(month_end.year, month_end.month, 1, tzinfo=UTC)
                await connection.execute(kind.query("delete_days_before"), end)
            dropped += 1
    return dropped
