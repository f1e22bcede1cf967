-- Readings of a meter in [$2, $3), in the order of time; all of them where the limit is NULL.
SELECT ts, received_at, kwh_consumed_ac, voltage
FROM meter_reading
WHERE meter_id = $1 AND ts >= $2 AND ts < $3
ORDER BY ts
LIMIT $4;
