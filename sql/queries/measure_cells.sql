-- What readings of some devices ($1) in [$2, $3) come to by UTC hour, as far as a look at each reading and the one before
-- it can tell: docs/rollups.md says what the columns mean. What counters count is for `sql.energy`. At the times $7, which
-- are in order, a cell ends and another begins.
--
-- $4: no reading before it is looked at; less than $2 by what still is a step and no silence. $5, $6: seconds between
-- readings, the longest that tell a cadence, and what is taken where nothing tells. The times are constants, so that the
-- planner leaves out the other days' partitions; a single device is one, so that a distributed database asks one node.
SELECT
    device.{device_id} AS id,
    date_bin('1 hour', cell.starts, '2000-01-01T00:00:00Z') AS hour,
    cell.samples,
    cell.first_ts,
    cell.last_ts,
    cell.cadence_s AS first_cadence_s,
    cell.cadence_s AS last_cadence_s,
    -- Covered is what lies within one cadence of a reading.
    CASE
        WHEN cell.longest_s <= 2 * cell.cadence_s THEN date_part('epoch', cell.last_ts - cell.first_ts)
        ELSE coalesce((SELECT sum(least(2 * cell.cadence_s, step_s)) FROM unnest(cell.steps_s) AS step_s), 0)
    END AS covered_s,
    cell.kwh_interval,
    cell.kwh_min,
    cell.kwh_max,
    {gauge_columns}
FROM {kind}_status AS device
CROSS JOIN LATERAL (
    SELECT
        starts,
        count(*)::integer AS samples,
        min(ts) AS first_ts,
        max(ts) AS last_ts,
        greatest(1, least(3600, coalesce(
            percentile_disc(0.5) WITHIN GROUP (ORDER BY step_s) FILTER (WHERE step_s <= $5::float8), $6::float8
        ))) AS cadence_s,
        max(step_s) FILTER (WHERE previous_ts >= starts) AS longest_s,
        array_agg(step_s) FILTER (WHERE previous_ts >= starts) AS steps_s,
        sum(kwh) AS kwh_interval,
        min(kwh) AS kwh_min,
        max(kwh) AS kwh_max,
        {gauge_extremes}
    FROM (
        SELECT
            *,
            greatest(
                $2,
                date_bin('1 hour', ts, '2000-01-01T00:00:00Z'),
                ($7::timestamptz[])[width_bucket(ts, $7::timestamptz[])]
            ) AS starts,
            date_part('epoch', ts - previous_ts) AS step_s
        FROM (
            SELECT
                r.ts,
                lag(r.ts) OVER (ORDER BY r.ts) AS previous_ts,
                r.{kwh} AS kwh,
                {r.gauges}
            FROM {history} AS r
            WHERE
                r.{device_id} = device.{device_id}
                AND (cardinality($1::text[]) > 1 OR r.{device_id} = ($1::text[])[1])
                AND r.ts >= $4
                AND r.ts < $3
                AND r.ts >= coalesce(
                    (
                        SELECT max(b.ts)
                        FROM {history} AS b
                        WHERE
                            b.{device_id} = device.{device_id}
                            AND (cardinality($1::text[]) > 1 OR b.{device_id} = ($1::text[])[1])
                            AND b.ts >= $4
                            AND b.ts < $2
                    ),
                    $2
                )
        ) AS reading
    ) AS stepped
    WHERE ts >= $2
    GROUP BY starts
) AS cell
WHERE
    device.{device_id} = ANY ($1::text[])
    AND (cardinality($1::text[]) > 1 OR device.{device_id} = ($1::text[])[1]);
