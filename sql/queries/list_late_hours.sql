-- The hours up to $2 for which readings of some devices came late, and are not rolled up yet.
SELECT DISTINCT {device_id} AS id, hour
FROM {kind}_late
WHERE {device_id} = ANY ($1::text[]) AND hour <= $2;
