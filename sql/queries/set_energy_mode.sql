-- Say how the kWh of a device are to be read.
INSERT INTO device (kind, id, energy_mode)
VALUES ($1, $2, $3)
ON CONFLICT (id, kind) DO UPDATE SET energy_mode = EXCLUDED.energy_mode;
