-- The UTC days from $4 to before $5, where there are several: cells for `sum_hours`. Of the silence between two of them, what
-- lies within one cadence of a reading is covered; of the one behind the last of them, its half.
SELECT
    {device_id},
    sum(CASE WHEN day = $4 THEN 4 ELSE 0 END)::integer,
    0,
    sum(kwh_interval),
    sum(kwh_register),
    sum(kwh_session),
    sum(covered_s + coalesce(least(date_part('epoch', first_ts - last_ts_before), cadence_s_before + first_cadence_s), 0)),
    sum(CASE WHEN is_last THEN date_part('epoch', $5::timestamptz - last_ts) ELSE 0 END),
    sum(CASE WHEN is_last THEN last_cadence_s ELSE 0 END)
FROM (
    SELECT
        {device_id},
        day,
        first_ts,
        last_ts,
        first_cadence_s,
        last_cadence_s,
        covered_s,
        kwh_interval,
        kwh_register,
        kwh_session,
        lag(last_ts) OVER by_day AS last_ts_before,
        lag(last_cadence_s) OVER by_day AS cadence_s_before,
        lead(day) OVER by_day IS NULL AS is_last
    FROM {kind}_day
    WHERE day >= $4::timestamptz AND day < $5::timestamptz
    WINDOW by_day AS (PARTITION BY {device_id} ORDER BY day)
) AS seamed
GROUP BY {device_id};
