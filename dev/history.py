"""`python -m dev history`: a day of one-minute readings of a large fleet, written by the database itself.

For measuring queries on many rows. It goes around the broker and the daemon on purpose: PostgreSQL makes the rows from
a formula, faster than a client could send them. They lie in the table as the daemon would have written them, minute by
minute, so the rows of one device are on many pages. Each vehicle charges once at 11 kW for some hours, with a loss of
its own between 6 and 14 %.
"""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sql.hours import HOUR, hour_floor
from sql.partitions import HISTORY_TABLES, Days, days_between

# $1: the number of devices; $2: where the history starts; $3, $4: the part of it that is written. `plugged` is whether
# the vehicle is charging.
_MINUTES = """
    FROM generate_series(1, $1::int) AS n,
         generate_series($3::timestamptz, $4::timestamptz - interval '1 minute', interval '1 minute') AS minute,
         LATERAL (SELECT (extract(epoch FROM minute - $2::timestamptz) / 60 - n * 7919 % 1000)
                         BETWEEN 0 AND 120 + n % 240 AS plugged) AS charging
"""
_STATEMENTS = {
    "meter_reading": f"""
        INSERT INTO meter_reading (meter_id, ts, kwh_consumed_ac, voltage, received_at)
        SELECT 'hm-' || lpad(n::text, 6, '0'), minute, CASE WHEN plugged THEN 11.0 / 60 ELSE 0.00005 END,
               228 + (n + extract(epoch FROM minute)::bigint / 60) % 5, minute
        {_MINUTES}
        ORDER BY 2, 1 ON CONFLICT DO NOTHING
    """,  # noqa: S608 - no part of it comes from outside
    "vehicle_reading": f"""
        INSERT INTO vehicle_reading (vehicle_id, ts, soc, kwh_delivered_dc, battery_temp, received_at)
        SELECT 'hv-' || lpad(n::text, 6, '0'), minute, 50,
               CASE WHEN plugged THEN 11.0 / 60 * (0.86 + n % 9 / 100.0) ELSE 0 END, 20 + n % 10, minute
        {_MINUTES}
        ORDER BY 2, 1 ON CONFLICT DO NOTHING
    """,
}
_FINISH = """
    INSERT INTO meter_status SELECT * FROM meter_reading WHERE ts = {last} AND meter_id LIKE 'hm-%'
    ON CONFLICT DO NOTHING;
    INSERT INTO vehicle_status SELECT * FROM vehicle_reading WHERE ts = {last} AND vehicle_id LIKE 'hv-%'
    ON CONFLICT DO NOTHING;
    INSERT INTO vehicle_meter_link (vehicle_id, meter_id, valid_from)
    SELECT vehicle_id, replace(vehicle_id, 'hv', 'hm'), {start} FROM vehicle_status AS v
    WHERE vehicle_id LIKE 'hv-%'
      AND NOT EXISTS (SELECT FROM vehicle_meter_link AS l WHERE l.vehicle_id = v.vehicle_id);
    INSERT INTO meter_late (meter_id, hour) SELECT '', {hours};
    INSERT INTO vehicle_late (vehicle_id, hour) SELECT '', {hours};
    VACUUM ANALYZE;
"""


async def history(database_url: str, vehicles: int, hours: int) -> None:
    """Write `hours` of readings up to now for that many vehicles, each linked with its meter; prints the totals."""
    end = datetime.now(UTC).replace(second=0, microsecond=0)
    start = end - timedelta(hours=hours)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        rows = await asyncio.gather(
            *(_fill(database_url, table, vehicles, start, end, progress) for table in HISTORY_TABLES)
        )
    await _finish(database_url, start, end - timedelta(minutes=1))
    print(f"{sum(rows):,} readings of {vehicles:,} vehicles and as many meters, {start:%F %H:%M} to {end:%F %H:%M} UTC")


async def _fill(
    database_url: str, table: str, vehicles: int, start: datetime, end: datetime, progress: Progress
) -> int:
    connection = await asyncpg.connect(database_url)
    parts = [start + n * HOUR for n in range((end - start) // HOUR)]
    rows = 0
    try:
        await Days().ensure(connection, table, days_between(start, end))
        for part in progress.track(parts, description=table):
            done = await connection.execute(_STATEMENTS[table], vehicles, start, part, part + HOUR)
            rows += int(done.rpartition(" ")[2])  # INSERT 0 n
    finally:
        await connection.close()
    return rows


async def _finish(database_url: str, start: datetime, last: datetime) -> None:
    """Live state, links, marks for the rollups, and what the planner should know."""
    connection = await asyncpg.connect(database_url)
    every_hour = f"'{hour_floor(start).isoformat()}'::timestamptz, '{last.isoformat()}', interval '1 hour'"
    closed = "(SELECT min(closed_through) FROM rollup_state)"
    hours = f"hour FROM generate_series({every_hour}) AS hour WHERE hour < {closed}"
    words = {"start": f"'{start.isoformat()}'", "last": f"'{last.isoformat()}'", "hours": hours}
    try:
        for statement in _FINISH.format(**words).split(";"):
            if statement.strip():
                await connection.execute(statement)
    finally:
        await connection.close()
