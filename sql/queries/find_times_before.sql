-- When the last $4 readings of a device in [$2, $3) were measured, the newest first.
SELECT ts
FROM {history}
WHERE {device_id} = $1 AND ts >= $2 AND ts < $3
ORDER BY ts DESC
LIMIT $4;
