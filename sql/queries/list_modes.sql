-- All devices of a kind that were ever seen, linked or configured, with their energy modes.
SELECT known.id, coalesce(device.energy_mode, 'interval') AS energy_mode
FROM (
    SELECT {device_id} AS id FROM {kind}_status
    UNION
    SELECT {device_id} FROM vehicle_meter_link
    UNION
    SELECT id FROM device WHERE kind = '{kind}'
) AS known
LEFT JOIN device ON device.kind = '{kind}' AND device.id = known.id
ORDER BY known.id;
