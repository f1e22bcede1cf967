-- The UTC day $4, where the window ends on the day after it: cells for `sum_hours`. Of the silence over midnight, its half.
SELECT
    {device_id},
    4,
    0,
    kwh_interval,
    kwh_register,
    kwh_session,
    covered_s,
    trail_s,
    last_cadence_s
FROM {kind}_day
WHERE day = $4::timestamptz AND $4::timestamptz < $5::timestamptz;
