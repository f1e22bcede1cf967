-- What each known device of a kind comes to in the hours from $1 to $3: a part of `sum_fleet`, which has the parameters.
--
-- kWh are null where subtraction cannot tell: the device has no reading in the first or the last hour, or a late one, or
-- is read as a counter while what counters count is not complete. It begins with the live state, of which each device has
-- one row, so that the planner knows how many there are.
SELECT
    known.{device_id},
    CASE
        WHEN coalesce(device.energy_mode, 'interval') = 'interval'
        THEN last.day_kwh_interval + coalesce(day.kwh_interval, 0) - (first.day_kwh_interval - first.kwh_interval)
        WHEN NOT $12
        THEN NULL
        WHEN device.energy_mode = 'register'
        THEN last.day_kwh_register + coalesce(day.kwh_register, 0) - (first.day_kwh_register - first.kwh_register)
        ELSE last.day_kwh_session + coalesce(day.kwh_session, 0) - (first.day_kwh_session - first.kwh_session)
    END AS kwh,
    last.day_covered_s
    + coalesce(day.covered_s, 0)
    - (first.day_covered_s - first.covered_s)
    -- What is covered over midnight, at the beginning and at the end.
    + coalesce(
        least(day.trail_s + last.day_lead_s, day.last_cadence_s + last.day_first_cadence_s), 0
    )
    + least(first.first_cadence_s, first.lead_s)
    + least(last.last_cadence_s, last.trail_s) AS covered_s
FROM {kind}_status AS known
LEFT JOIN {kind}_hour AS first
    ON first.{device_id} = known.{device_id} AND first.hour = $1 AND first.{device_id} <> ALL ({late}::text[])
LEFT JOIN {kind}_hour AS last ON last.{device_id} = known.{device_id} AND last.hour = $3
LEFT JOIN {kind}_day AS day ON day.{device_id} = known.{device_id} AND day.day = $4 AND $4 < $5
LEFT JOIN device ON device.kind = '{kind}' AND device.id = known.{device_id};
