-- Mark hours, of which the rollups came too early: devices and hours, in pairs.
INSERT INTO {kind}_late ({device_id}, hour)
SELECT *
FROM unnest($1::text[], $2::timestamptz[]);
