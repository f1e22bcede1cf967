-- What the devices of a kind count in [{start}, {end}), which a window has beyond its whole hours: cells for `sum_hours`.
--
-- {before}: no reading before it is looked at. {hour}: the hour that this adjoins, with {silence} and {cadence} at that end of
-- it. {outer}, {inner}: the silences at both ends of this time, and the cadences there; the end of the window comes first.
-- $16, $17: seconds between readings, the longest that tell a cadence, and what is taken where nothing tells. $18:
-- POWER_MAX_KW.
--
-- `measure_cells` says what is covered. Of the silence towards the hour, it counts what it takes for covered by itself;
-- that is taken away here. A counter that does nothing but rise, and never too fast, counts what it rose by
-- (`sql.energy`), or the doubts say that it may not have.
SELECT
    cell.{device_id},
    0,
    CASE WHEN edge.rises THEN 0 ELSE 6 END,
    edge.kwh,
    edge.rise_kwh,
    edge.rise_kwh,
    edge.covered_s
    + least(edge.{outer}_s, edge.{outer}_cadence_s)
    + least(edge.{inner}_s + cell.{silence}, edge.{inner}_cadence_s + cell.{cadence})
    - least(cell.{cadence}, cell.{silence} + date_part('epoch', {end}::timestamptz - {start}::timestamptz)),
    0.0,
    0.0
FROM {kind}_hour AS cell
CROSS JOIN LATERAL (
    SELECT
        sum(kwh) AS kwh,
        sum(rise_kwh) AS rise_kwh,
        bool_and(rises) AS rises,
        sum(
            CASE
                WHEN longest_s <= 2 * cadence_s THEN date_part('epoch', last_ts - first_ts)
                ELSE coalesce((SELECT sum(least(2 * cadence_s, step_s)) FROM unnest(steps_s) AS step_s), 0)
            END
            + coalesce(least(date_part('epoch', first_ts - last_ts_before), cadence_s_before + cadence_s), 0)
        ) AS covered_s,
        date_part('epoch', min(first_ts) - {start}::timestamptz) AS lead_s,
        date_part('epoch', {end}::timestamptz - max(last_ts)) AS trail_s,
        (array_agg(cadence_s ORDER BY hour))[1] AS lead_cadence_s,
        (array_agg(cadence_s ORDER BY hour DESC))[1] AS trail_cadence_s
    FROM (
        SELECT
            *,
            lag(last_ts) OVER (ORDER BY hour) AS last_ts_before,
            lag(cadence_s) OVER (ORDER BY hour) AS cadence_s_before
        FROM (
            SELECT
                date_bin('1 hour', ts, '2000-01-01T00:00:00Z') AS hour,
                min(ts) AS first_ts,
                max(ts) AS last_ts,
                greatest(1, least(3600, coalesce(
                    percentile_disc(0.5) WITHIN GROUP (ORDER BY step_s) FILTER (WHERE step_s <= $16::float8), $17::float8
                ))) AS cadence_s,
                max(step_s) FILTER (WHERE is_inner) AS longest_s,
                array_agg(step_s) FILTER (WHERE is_inner) AS steps_s,
                sum(kwh) AS kwh,
                sum(step_kwh) AS rise_kwh,
                bool_and(coalesce(step_kwh BETWEEN 0 AND $18::float8 * step_s / 3600, false)) AS rises
            FROM (
                SELECT
                    ts,
                    kwh,
                    kwh - lag(kwh) OVER (ORDER BY ts) AS step_kwh,
                    date_part('epoch', ts - lag(ts) OVER (ORDER BY ts)) AS step_s,
                    lag(ts) OVER (ORDER BY ts) >= greatest(
                        {start}::timestamptz, date_bin('1 hour', ts, '2000-01-01T00:00:00Z')
                    ) AS is_inner
                FROM (
                    SELECT r.ts, r.{kwh} AS kwh
                    FROM {history} AS r
                    WHERE
                        r.{device_id} = cell.{device_id}
                        AND r.ts >= {before}::timestamptz
                        AND r.ts < {end}::timestamptz
                        AND r.ts >= coalesce(
                            (
                                SELECT max(b.ts)
                                FROM {history} AS b
                                WHERE
                                    b.{device_id} = cell.{device_id}
                                    AND b.ts >= {before}::timestamptz
                                    AND b.ts < {start}::timestamptz
                            ),
                            {start}::timestamptz
                        )
                ) AS reading
            ) AS stepped
            WHERE ts >= {start}::timestamptz
            GROUP BY hour
        ) AS by_hour
    ) AS seamed
) AS edge
WHERE {start}::timestamptz < {end}::timestamptz AND cell.hour = {hour} AND edge.kwh IS NOT NULL;
