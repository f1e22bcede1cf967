-- The energy mode that was set for a device.
SELECT energy_mode
FROM device
WHERE kind = $1 AND id = $2;
