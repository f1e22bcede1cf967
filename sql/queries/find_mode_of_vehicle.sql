-- The energy mode of a vehicle that was ever seen, linked or configured.
SELECT coalesce((SELECT energy_mode FROM device WHERE kind = 'vehicle' AND id = $1), 'interval')
WHERE
    EXISTS (SELECT FROM vehicle_status WHERE vehicle_id = $1)
    OR EXISTS (SELECT FROM vehicle_meter_link WHERE vehicle_id = $1)
    OR EXISTS (SELECT FROM device WHERE kind = 'vehicle' AND id = $1);
