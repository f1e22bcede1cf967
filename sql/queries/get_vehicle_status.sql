-- Live state of one vehicle.
SELECT
    s.vehicle_id AS id,
    s.ts,
    greatest(0, extract(epoch FROM now() - s.ts))::float8 AS age_s,
    s.received_at,
    coalesce(d.energy_mode, 'interval') AS energy_mode,
    s.soc,
    s.kwh_delivered_dc,
    s.battery_temp
FROM vehicle_status AS s
LEFT JOIN device AS d ON d.id = s.vehicle_id AND d.kind = 'vehicle'
WHERE s.vehicle_id = $1;
