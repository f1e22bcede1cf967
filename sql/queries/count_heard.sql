-- How many devices of each kind are known, how many were heard from since $1, and when the last one was.
SELECT 'meter' AS kind, count(*) AS known, count(*) FILTER (WHERE received_at >= $1) AS heard, max(received_at) AS last_at
FROM meter_status
UNION ALL
SELECT 'vehicle', count(*), count(*) FILTER (WHERE received_at >= $1), max(received_at)
FROM vehicle_status;
