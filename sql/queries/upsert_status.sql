-- Live state from the newest reading of each device; it moves only forward in time. Times come as microseconds
-- since 2000.
INSERT INTO {kind}_status AS s ({columns})
SELECT
    {device_id},
    to_timestamp(ts_us / 1e6::float8 + 946684800),
    {values},
    to_timestamp(received_at_us / 1e6::float8 + 946684800)
FROM unnest({arrays_us}) AS newest ({device_id}, ts_us, {values}, received_at_us)
ON CONFLICT ({device_id}) DO UPDATE SET
    (ts, {values}, received_at) = (EXCLUDED.ts, {EXCLUDED.values}, EXCLUDED.received_at)
WHERE s.ts < EXCLUDED.ts;
