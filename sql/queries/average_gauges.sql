-- What a device showed in each step ($6) of [$2, $3), on average: of the full hours in [$4, $5) from the rollups.
--
-- The times are constants, so that the planner leaves out the other partitions.
SELECT date_bin($6, ts, '2000-01-01T00:00:00Z') AS starts, {gauge_means}
FROM (
    SELECT hour AS ts, samples, {gauge_sums}
    FROM {kind}_hour
    WHERE {device_id} = $1 AND hour >= $4 AND hour < $5
    UNION ALL
    SELECT ts, 1, {gauges}
    FROM {history}
    WHERE {device_id} = $1 AND ts >= $2 AND ts < $4
    UNION ALL
    SELECT ts, 1, {gauges}
    FROM {history}
    WHERE {device_id} = $1 AND ts >= $5 AND ts < $3
) AS shown
GROUP BY starts;
