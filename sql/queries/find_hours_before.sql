-- Of some devices the last hour in [$2, $3), which lies within one UTC day: what the day comes to so far.
SELECT DISTINCT ON ({device_id})
    {device_id} AS id,
    last_ts,
    last_cadence_s,
    day_lead_s,
    day_first_cadence_s,
    day_covered_s,
    day_kwh_interval,
    day_kwh_register,
    day_kwh_session
FROM {kind}_hour
WHERE {device_id} = ANY ($1::text[]) AND hour >= $2 AND hour < $3
ORDER BY {device_id}, hour DESC;
