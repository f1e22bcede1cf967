-- The energy mode of a device that was ever seen, linked or configured.
SELECT coalesce((SELECT energy_mode FROM device WHERE kind = '{kind}' AND id = $1), 'interval')
WHERE
    EXISTS (SELECT FROM {kind}_status WHERE {device_id} = $1)
    OR EXISTS (SELECT FROM vehicle_meter_link WHERE {device_id} = $1)
    OR EXISTS (SELECT FROM device WHERE kind = '{kind}' AND id = $1);
