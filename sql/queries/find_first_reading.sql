-- When the oldest reading of a device was measured.
SELECT ts
FROM {history}
WHERE {device_id} = $1
ORDER BY ts
LIMIT 1;
