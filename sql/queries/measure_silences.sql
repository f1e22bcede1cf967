-- Where a device was silent for longer than its cadence, by UTC hour: what is missing within the hour, and its gaps.
--
-- Only between two readings of one hour in [$2, $3); a silence over the edge of an hour is not seen here. $4, $5: hours
-- and the seconds after which a reading is due in each. $6: readings missing in a row that make a gap. $7: how many gaps
-- of an hour are shown, the longest. sql/completeness.py has the rules.
SELECT
    hour,
    sum(missing)::bigint AS missing,
    count(*) FILTER (WHERE missing >= $6) AS gaps,
    coalesce(
        (array_agg(previous_ts ORDER BY ts - previous_ts DESC, ts) FILTER (WHERE missing >= $6))[:$7], '{}'
    ) AS gap_starts,
    coalesce((array_agg(ts ORDER BY ts - previous_ts DESC, ts) FILTER (WHERE missing >= $6))[:$7], '{}') AS gap_ends
FROM (
    SELECT
        hour,
        previous_ts,
        ts,
        floor(date_part('epoch', ts - previous_ts) / due.cadence_s - 0.5)::bigint AS missing
    FROM (
        SELECT hour, ts, lag(ts) OVER (PARTITION BY hour ORDER BY ts) AS previous_ts
        FROM (
            SELECT ts, date_bin('1 hour', ts, '2000-01-01T00:00:00Z') AS hour
            FROM {history}
            WHERE {device_id} = $1 AND ts >= $2 AND ts < $3
        ) AS reading
    ) AS stepped
    JOIN unnest($4::timestamptz[], $5::float8[]) AS due (hour, cadence_s) USING (hour)
) AS judged
WHERE missing > 0
GROUP BY hour;
