-- What devices of a kind counted by UTC hour in [$1, $2), of those that were linked for the whole of the hour.
SELECT
    cell.hour,
    sum(CASE coalesce(device.energy_mode, 'interval')
        WHEN 'register' THEN cell.kwh_register WHEN 'session' THEN cell.kwh_session ELSE cell.kwh_interval
    END) AS kwh
FROM vehicle_meter_link AS l
JOIN {kind}_hour AS cell ON cell.{device_id} = l.{device_id}
LEFT JOIN device ON device.kind = '{kind}' AND device.id = l.{device_id}
WHERE
    cell.hour >= $1
    AND cell.hour < $2
    AND l.valid_from <= cell.hour
    AND coalesce(l.valid_to >= cell.hour + interval '1 hour', true)
GROUP BY cell.hour;
