-- Energy of the fleet by UTC hour in [$1, $2), of vehicles and their meters that were linked for the whole of the hour.
SELECT
    m.hour,
    sum(CASE coalesce(of_meter.energy_mode, 'interval')
        WHEN 'register' THEN m.kwh_register WHEN 'session' THEN m.kwh_session ELSE m.kwh_interval
    END) AS ac_kwh,
    sum(CASE coalesce(of_vehicle.energy_mode, 'interval')
        WHEN 'register' THEN v.kwh_register WHEN 'session' THEN v.kwh_session ELSE v.kwh_interval
    END) AS dc_kwh
FROM vehicle_meter_link AS l
JOIN meter_hour AS m ON m.meter_id = l.meter_id
JOIN vehicle_hour AS v ON v.vehicle_id = l.vehicle_id AND v.hour = m.hour
LEFT JOIN device AS of_meter ON of_meter.kind = 'meter' AND of_meter.id = l.meter_id
LEFT JOIN device AS of_vehicle ON of_vehicle.kind = 'vehicle' AND of_vehicle.id = l.vehicle_id
WHERE
    m.hour >= $1
    AND m.hour < $2
    AND v.hour >= $1
    AND v.hour < $2
    AND l.valid_from <= m.hour
    AND coalesce(l.valid_to >= m.hour + interval '1 hour', true)
GROUP BY m.hour
ORDER BY m.hour;
