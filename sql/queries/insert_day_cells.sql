-- Put the hours of some devices' UTC day [$2, $3) together.
INSERT INTO {kind}_day (
    {device_id}, day, samples, first_ts, last_ts, lead_s, trail_s, first_cadence_s, last_cadence_s, covered_s,
    kwh_interval, kwh_register, kwh_session,
    register_impossible_steps, register_resets, register_dips, register_glitches,
    session_impossible_steps, session_resets, session_dips, session_glitches,
    kwh_min, kwh_max, {gauge_columns}
)
SELECT
    {device_id},
    $2,
    sum(samples),
    min(first_ts),
    max(last_ts),
    min(day_lead_s),
    date_part('epoch', $3::timestamptz - max(last_ts)),
    (array_agg(first_cadence_s ORDER BY hour))[1],
    (array_agg(last_cadence_s ORDER BY hour DESC))[1],
    max(day_covered_s),
    sum(kwh_interval),
    sum(kwh_register),
    sum(kwh_session),
    sum(register_impossible_steps),
    sum(register_resets),
    sum(register_dips),
    sum(register_glitches),
    sum(session_impossible_steps),
    sum(session_resets),
    sum(session_dips),
    sum(session_glitches),
    min(kwh_min),
    max(kwh_max),
    {gauge_merges}
FROM {kind}_hour
WHERE {device_id} = ANY ($1::text[]) AND hour >= $2 AND hour < $3
GROUP BY {device_id};
