-- Link a vehicle with a meter.
INSERT INTO vehicle_meter_link (vehicle_id, meter_id, valid_from, valid_to)
VALUES ($1, $2, $3, $4);
