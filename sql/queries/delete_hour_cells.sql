-- Delete the cells of some devices' hours in [$2, $3).
DELETE FROM {kind}_hour
WHERE {device_id} = ANY ($1::text[]) AND hour >= $2 AND hour < $3;
