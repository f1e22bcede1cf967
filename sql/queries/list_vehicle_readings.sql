-- Readings of a vehicle in [$2, $3), in the order of time; all of them where the limit is NULL.
SELECT ts, received_at, soc, kwh_delivered_dc, battery_temp
FROM vehicle_reading
WHERE vehicle_id = $1 AND ts >= $2 AND ts < $3
ORDER BY ts
LIMIT $4;
