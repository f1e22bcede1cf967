-- When the oldest reading of a vehicle was measured.
SELECT ts
FROM vehicle_reading
WHERE vehicle_id = $1
ORDER BY ts
LIMIT 1;
