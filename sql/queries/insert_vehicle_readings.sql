-- The slow way: store the readings whose key (device, time) is new, leave the others, and return how many were new.
WITH stored AS (
    INSERT INTO vehicle_reading (vehicle_id, ts, soc, kwh_delivered_dc, battery_temp, received_at)
    SELECT *
    FROM unnest($1::text[], $2::timestamptz[], $3::float8[], $4::float8[], $5::float8[], $6::timestamptz[])
    ON CONFLICT DO NOTHING
    RETURNING 1
)
SELECT count(*) FROM stored;
