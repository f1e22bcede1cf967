-- Live state from the newest reading of each device; it moves only forward in time. Times come as
-- microseconds since 2000.
INSERT INTO meter_status AS s (meter_id, ts, kwh_consumed_ac, voltage, received_at)
SELECT
    meter_id,
    to_timestamp(ts_us / 1e6::float8 + 946684800),
    kwh_consumed_ac,
    voltage,
    to_timestamp(received_at_us / 1e6::float8 + 946684800)
FROM unnest($1::text[], $2::int8[], $3::float8[], $4::float8[], $5::int8[])
    AS newest (meter_id, ts_us, kwh_consumed_ac, voltage, received_at_us)
ON CONFLICT (meter_id) DO UPDATE SET
    ts = EXCLUDED.ts,
    kwh_consumed_ac = EXCLUDED.kwh_consumed_ac,
    voltage = EXCLUDED.voltage,
    received_at = EXCLUDED.received_at
WHERE s.ts < EXCLUDED.ts;
