-- The next $2 devices of a kind behind $1, in the order of their ids.
SELECT {device_id} AS id
FROM {kind}_status
WHERE {device_id} > $1
ORDER BY {device_id}
LIMIT $2;
