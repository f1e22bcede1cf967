-- Live state from the newest reading of each device; it moves only forward in time.
INSERT INTO vehicle_status AS s (vehicle_id, ts, soc, kwh_delivered_dc, battery_temp, received_at)
SELECT *
FROM unnest($1::text[], $2::timestamptz[], $3::float8[], $4::float8[], $5::float8[], $6::timestamptz[])
ON CONFLICT (vehicle_id) DO UPDATE SET
    ts = EXCLUDED.ts,
    soc = EXCLUDED.soc,
    kwh_delivered_dc = EXCLUDED.kwh_delivered_dc,
    battery_temp = EXCLUDED.battery_temp,
    received_at = EXCLUDED.received_at
WHERE s.ts < EXCLUDED.ts;
