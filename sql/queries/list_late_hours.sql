-- The marks of hours before $2 that readings of some devices, or (without a name) of any device, came late for.
SELECT DISTINCT {device_id} AS id, hour
FROM {kind}_late
WHERE {device_id} = ANY ($1::text[] || '') AND hour < $2;
