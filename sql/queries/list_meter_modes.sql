-- All meters that were ever seen, linked or configured, with their energy modes.
SELECT known.id, coalesce(device.energy_mode, 'interval') AS energy_mode
FROM (
    SELECT meter_id AS id FROM meter_status
    UNION
    SELECT meter_id FROM vehicle_meter_link
    UNION
    SELECT id FROM device WHERE kind = 'meter'
) AS known
LEFT JOIN device ON device.kind = 'meter' AND device.id = known.id
ORDER BY known.id;
