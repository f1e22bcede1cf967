-- All vehicles that were ever seen, linked or configured, with their energy modes.
SELECT known.id, coalesce(device.energy_mode, 'interval') AS energy_mode
FROM (
    SELECT vehicle_id AS id FROM vehicle_status
    UNION
    SELECT vehicle_id FROM vehicle_meter_link
    UNION
    SELECT id FROM device WHERE kind = 'vehicle'
) AS known
LEFT JOIN device ON device.kind = 'vehicle' AND device.id = known.id
ORDER BY known.id;
