-- Live state from the newest reading of each device; it moves only forward in time. Times come as
-- microseconds since 2000.
INSERT INTO vehicle_status AS s (vehicle_id, ts, soc, kwh_delivered_dc, battery_temp, received_at)
SELECT
    vehicle_id,
    to_timestamp(ts_us / 1e6::float8 + 946684800),
    soc,
    kwh_delivered_dc,
    battery_temp,
    to_timestamp(received_at_us / 1e6::float8 + 946684800)
FROM unnest($1::text[], $2::int8[], $3::float8[], $4::float8[], $5::float8[], $6::int8[])
    AS newest (vehicle_id, ts_us, soc, kwh_delivered_dc, battery_temp, received_at_us)
ON CONFLICT (vehicle_id) DO UPDATE SET
    ts = EXCLUDED.ts,
    soc = EXCLUDED.soc,
    kwh_delivered_dc = EXCLUDED.kwh_delivered_dc,
    battery_temp = EXCLUDED.battery_temp,
    received_at = EXCLUDED.received_at
WHERE s.ts < EXCLUDED.ts;
