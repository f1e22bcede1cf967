-- What the devices of a kind count in [{start}, {end}), which a window has beyond its whole hours: cells for `sum_hours`.
--
-- {since}: a minute before the start. {hour}: the hour that this adjoins, with {silence} and {cadence} at that end of it.
-- {outer}, {inner}: the silences at both ends of this time, the one at the end of the window first. $17: POWER_MAX_KW.
--
-- The hour counts as if nothing had been sent here, so what its cadence left uncovered is added: all of this time is covered,
-- or the first of the doubts says that it may not be. No median is looked for. The cadence is never less than the least
-- step, and a minute where there is no step to tell it (`measure_cells`). A counter that does nothing but rise, and never
-- too fast, counts what it rose by (`sql.energy`), or the other doubts say that it may not have.
SELECT
    cell.{device_id},
    0,
    CASE
        WHEN
            edge.longest_s <= 2 * edge.least_s
            AND edge.{outer} <= edge.least_s
            AND edge.{inner} + cell.{silence} <= edge.least_s + cell.{cadence}
        THEN 0
        ELSE 1
    END
    + CASE WHEN edge.rises THEN 0 ELSE 6 END,
    edge.kwh,
    edge.rise_kwh,
    edge.rise_kwh,
    greatest(
        0, cell.{silence} + date_part('epoch', {end}::timestamptz - {start}::timestamptz) - cell.{cadence}
    ),
    0.0,
    0.0
FROM {kind}_hour AS cell
CROSS JOIN LATERAL (
    SELECT
        sum(kwh) AS kwh,
        sum(step_kwh) AS rise_kwh,
        bool_and(coalesce(step_kwh BETWEEN 0 AND $17::float8 * step_s / 3600, false)) AS rises,
        least(60, min(step_s)) AS least_s,
        coalesce(max(step_s), 0) AS longest_s,
        date_part('epoch', min(ts) - {start}::timestamptz) AS before_s,
        date_part('epoch', {end}::timestamptz - max(ts)) AS behind_s
    FROM (
        SELECT
            ts,
            kwh,
            kwh - lag(kwh) OVER (ORDER BY ts) AS step_kwh,
            date_part('epoch', ts - lag(ts) OVER (ORDER BY ts)) AS step_s
        FROM (
            SELECT r.ts, r.{kwh} AS kwh
            FROM {history} AS r
            WHERE r.{device_id} = cell.{device_id} AND r.ts >= {since}::timestamptz AND r.ts < {end}::timestamptz
        ) AS reading
    ) AS stepped
    WHERE ts >= {start}::timestamptz
) AS edge
WHERE {start}::timestamptz < {end}::timestamptz AND cell.hour = {hour} AND edge.kwh IS NOT NULL;
