-- What the devices of a kind come to in the window: a part of `sum_fleet`, which has the parameters.
--
-- Adds up cells of a device: the first hour as what its day had come to before it, taken away; the last hour as what its own
-- day has come to; the days between, from that of the first (`sum_day`, `sum_days`); and `sum_edge` before the first hour and
-- behind the last, where the window has more than whole hours. kWh are null where that cannot tell: a cell of the first hour,
-- of its day or of the last hour is missing (`ends` has a bit for each), or there is a doubt: 1 where so much is taken away
-- that digits are lost, 2 of what a register counted, 4 of what a session counter did. One that has late readings lacks its
-- first.
SELECT
    part.{device_id},
    CASE
        WHEN part.ends <> CASE WHEN $4::timestamptz < $5::timestamptz THEN 7 ELSE 3 END OR part.doubts & 1 > 0
        THEN NULL
        WHEN coalesce(device.energy_mode, 'interval') = 'interval'
        THEN part.kwh_interval
        WHEN device.energy_mode = 'register' AND part.doubts & 2 = 0
        THEN part.kwh_register
        WHEN device.energy_mode = 'session' AND part.doubts & 4 = 0
        THEN part.kwh_session
    END AS kwh,
    -- Of the silence over midnight, what lies within one cadence of a reading.
    part.covered_s + least(part.silence_s, part.reach_s) AS covered_s
FROM (
    SELECT
        {device_id},
        sum(ends) AS ends,
        bit_or(doubts) AS doubts,
        sum(kwh_interval) AS kwh_interval,
        sum(kwh_register) AS kwh_register,
        sum(kwh_session) AS kwh_session,
        sum(covered_s) AS covered_s,
        sum(silence_s) AS silence_s,
        sum(reach_s) AS reach_s
    FROM (
        SELECT
            {device_id},
            1 AS ends,
            CASE WHEN greatest(day_kwh_interval, day_kwh_register, day_kwh_session) > 1e8 THEN 1 ELSE 0 END AS doubts,
            kwh_interval - day_kwh_interval AS kwh_interval,
            kwh_register - day_kwh_register AS kwh_register,
            kwh_session - day_kwh_session AS kwh_session,
            covered_s
            - day_covered_s
            + least(first_cadence_s, lead_s + date_part('epoch', $13::timestamptz - $1::timestamptz)) AS covered_s,
            0.0 AS silence_s,
            0.0 AS reach_s
        FROM {kind}_hour
        WHERE hour = $13 AND {device_id} <> ALL ({late}::text[])
        UNION ALL
        SELECT
            {device_id},
            2,
            0,
            day_kwh_interval,
            day_kwh_register,
            day_kwh_session,
            day_covered_s + least(last_cadence_s, trail_s + date_part('epoch', $2::timestamptz - $14::timestamptz)),
            CASE WHEN $4::timestamptz < $5::timestamptz THEN day_lead_s ELSE 0.0 END,
            CASE WHEN $4::timestamptz < $5::timestamptz THEN day_first_cadence_s ELSE 0.0 END
        FROM {kind}_hour
        WHERE hour = $3
        UNION ALL
        {days}
        UNION ALL
        SELECT
            {device_id},
            0,
            CASE WHEN register_impossible_steps + register_resets + register_dips + register_glitches > 0 THEN 2 ELSE 0 END
            + CASE WHEN session_impossible_steps + session_resets + session_dips + session_glitches > 0 THEN 4 ELSE 0 END,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0
        FROM {kind}_hour
        WHERE hour = ANY ($12::timestamptz[])
        {edges}
    ) AS cell
    GROUP BY {device_id}
) AS part
LEFT JOIN device ON device.kind = '{kind}' AND device.id = part.{device_id};
