-- Readings of a device in [$2, $3), in the order of time; all of them where the limit is NULL.
SELECT ts, received_at, {values}
FROM {history}
WHERE {device_id} = $1 AND ts >= $2 AND ts < $3
ORDER BY ts
LIMIT $4;
