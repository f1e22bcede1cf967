-- Live state from the newest reading of each device; it moves only forward in time.
INSERT INTO meter_status AS s (meter_id, ts, kwh_consumed_ac, voltage, received_at)
SELECT *
FROM unnest($1::text[], $2::timestamptz[], $3::float8[], $4::float8[], $5::timestamptz[])
ON CONFLICT (meter_id) DO UPDATE SET
    ts = EXCLUDED.ts,
    kwh_consumed_ac = EXCLUDED.kwh_consumed_ac,
    voltage = EXCLUDED.voltage,
    received_at = EXCLUDED.received_at
WHERE s.ts < EXCLUDED.ts;
