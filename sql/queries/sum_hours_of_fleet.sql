-- Energy of the fleet by UTC hour in [$1, $2): of meters and of vehicles that were linked for the whole of the hour. An
-- hour in which only one side has readings counts for that side.
SELECT
    hour,
    sum(ac_kwh) AS ac_kwh,
    sum(dc_kwh) AS dc_kwh
FROM (
    SELECT
        m.hour,
        sum(CASE coalesce(device.energy_mode, 'interval')
            WHEN 'register' THEN m.kwh_register WHEN 'session' THEN m.kwh_session ELSE m.kwh_interval
        END) AS ac_kwh,
        0.0 AS dc_kwh
    FROM vehicle_meter_link AS l
    JOIN meter_hour AS m ON m.meter_id = l.meter_id
    LEFT JOIN device ON device.kind = 'meter' AND device.id = l.meter_id
    WHERE
        m.hour >= $1
        AND m.hour < $2
        AND l.valid_from <= m.hour
        AND coalesce(l.valid_to >= m.hour + interval '1 hour', true)
    GROUP BY m.hour
    UNION ALL
    SELECT
        v.hour,
        0.0,
        sum(CASE coalesce(device.energy_mode, 'interval')
            WHEN 'register' THEN v.kwh_register WHEN 'session' THEN v.kwh_session ELSE v.kwh_interval
        END)
    FROM vehicle_meter_link AS l
    JOIN vehicle_hour AS v ON v.vehicle_id = l.vehicle_id
    LEFT JOIN device ON device.kind = 'vehicle' AND device.id = l.vehicle_id
    WHERE
        v.hour >= $1
        AND v.hour < $2
        AND l.valid_from <= v.hour
        AND coalesce(l.valid_to >= v.hour + interval '1 hour', true)
    GROUP BY v.hour
) AS side
GROUP BY hour
ORDER BY hour;
