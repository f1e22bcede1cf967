-- Live state of one meter.
SELECT
    s.meter_id AS id,
    s.ts,
    greatest(0, extract(epoch FROM now() - s.ts))::float8 AS age_s,
    s.received_at,
    coalesce(d.energy_mode, 'interval') AS energy_mode,
    s.kwh_consumed_ac,
    s.voltage
FROM meter_status AS s
LEFT JOIN device AS d ON d.id = s.meter_id AND d.kind = 'meter'
WHERE s.meter_id = $1;
