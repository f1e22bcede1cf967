-- What the devices of a kind count in [{start}, {end}), which a window has beyond its whole hours: cells for `sum_hours`.
--
-- {since}: a minute before the start. {hour}: the hour that this adjoins, with {silence} and {cadence} at that end of it.
-- {outer}, {inner}: the silences at both ends of this time, the one at the end of the window first.
--
-- The hour counts as if nothing had been sent here, so what its cadence left uncovered is added: all of this time is covered,
-- or `ends` says that it may not be. No median is looked for. The cadence is never less than the least step, and a minute
-- where there is no step to tell it (`measure_cells`).
SELECT
    cell.{device_id},
    CASE
        WHEN
            edge.longest_s <= 2 * edge.least_s
            AND edge.{outer} <= edge.least_s
            AND edge.{inner} + cell.{silence} <= edge.least_s + cell.{cadence}
        THEN 0
        ELSE 4
    END,
    edge.kwh,
    0.0,
    0.0,
    greatest(
        0, cell.{silence} + date_part('epoch', {end}::timestamptz - {start}::timestamptz) - cell.{cadence}
    ),
    0.0,
    0.0
FROM {kind}_hour AS cell
CROSS JOIN LATERAL (
    SELECT
        sum(kwh) AS kwh,
        least(60, min(step_s)) AS least_s,
        coalesce(max(step_s), 0) AS longest_s,
        date_part('epoch', min(ts) - {start}::timestamptz) AS before_s,
        date_part('epoch', {end}::timestamptz - max(ts)) AS behind_s
    FROM (
        SELECT
            r.ts,
            r.{kwh} AS kwh,
            date_part('epoch', r.ts - lag(r.ts) OVER (ORDER BY r.ts)) AS step_s
        FROM {history} AS r
        WHERE r.{device_id} = cell.{device_id} AND r.ts >= {since}::timestamptz AND r.ts < {end}::timestamptz
    ) AS stepped
    WHERE ts >= {start}::timestamptz
) AS edge
WHERE {start}::timestamptz < {end}::timestamptz AND cell.hour = {hour} AND edge.kwh IS NOT NULL;
