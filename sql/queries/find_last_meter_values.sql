-- The kWh of the last $4 readings of a meter in [$2, $3], the newest first.
SELECT kwh_consumed_ac AS kwh
FROM meter_reading
WHERE meter_id = $1 AND ts BETWEEN $2 AND $3
ORDER BY ts DESC
LIMIT $4;
