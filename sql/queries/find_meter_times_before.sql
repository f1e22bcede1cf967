-- When the last $4 readings of a meter in [$2, $3) were measured, the newest first.
SELECT ts
FROM meter_reading
WHERE meter_id = $1 AND ts >= $2 AND ts < $3
ORDER BY ts DESC
LIMIT $4;
