-- Delete marks: devices and hours, in pairs.
DELETE FROM {kind}_late AS late
USING unnest($1::text[], $2::timestamptz[]) AS done (id, hour)
WHERE late.{device_id} = done.id AND late.hour = done.hour;
