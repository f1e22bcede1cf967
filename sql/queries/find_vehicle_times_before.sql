-- When the last $4 readings of a vehicle in [$2, $3) were measured, the newest first.
SELECT ts
FROM vehicle_reading
WHERE vehicle_id = $1 AND ts >= $2 AND ts < $3
ORDER BY ts DESC
LIMIT $4;
