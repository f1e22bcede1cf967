-- When the oldest reading of a meter was measured.
SELECT ts
FROM meter_reading
WHERE meter_id = $1
ORDER BY ts
LIMIT 1;
