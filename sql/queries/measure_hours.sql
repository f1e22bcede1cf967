-- How often a device sent, by UTC hour: its readings in [$2, $3) and the steps between them, in seconds.
--
-- A step belongs to the hour in which it ends. $4: the share of the median within which a step is near it. $5: how many
-- of an hour's steps are shown, the first ones. All times are parameters, so that the planner leaves out the other days'
-- partitions. sql/completeness.py has the rules.
WITH
reading AS MATERIALIZED (
    SELECT ts, hour, step_s, count(step_s) OVER (PARTITION BY hour ORDER BY ts) AS n
    FROM (
        SELECT
            ts,
            date_bin('1 hour', ts, '2000-01-01T00:00:00Z') AS hour,
            date_part('epoch', ts - lag(ts) OVER (ORDER BY ts)) AS step_s
        FROM {history}
        WHERE {device_id} = $1 AND ts >= $2 AND ts < $3
    ) AS stepped
),
usual AS (
    SELECT hour, percentile_disc(0.5) WITHIN GROUP (ORDER BY step_s) AS median_s
    FROM reading
    GROUP BY hour
)
SELECT
    hour,
    count(*) AS came,
    min(ts) AS first_at,
    max(ts) AS last_at,
    count(step_s) AS steps,
    median_s,
    count(*) FILTER (WHERE abs(step_s - median_s) <= $4 * median_s) AS near,
    coalesce(array_agg(step_s ORDER BY ts) FILTER (WHERE step_s IS NOT NULL AND n <= $5), '{}') AS sample_s
FROM reading
JOIN usual USING (hour)
GROUP BY hour, median_s
ORDER BY hour;
