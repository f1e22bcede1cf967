-- The kWh of the last $4 readings of a device in [$2, $3], the newest first.
SELECT {kwh} AS kwh
FROM {history}
WHERE {device_id} = $1 AND ts BETWEEN $2 AND $3
ORDER BY ts DESC
LIMIT $4;
