-- The kWh of the last $4 readings of a vehicle in [$2, $3], the newest first.
SELECT kwh_delivered_dc AS kwh
FROM vehicle_reading
WHERE vehicle_id = $1 AND ts BETWEEN $2 AND $3
ORDER BY ts DESC
LIMIT $4;
