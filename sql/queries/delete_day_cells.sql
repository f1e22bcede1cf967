-- Delete the cells of some devices' UTC day $2.
DELETE FROM {kind}_day
WHERE {device_id} = ANY ($1::text[]) AND day = $2;
