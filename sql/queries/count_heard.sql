-- How many devices of each kind are known, and how many were heard from since $1.
SELECT 'meter' AS kind, count(*) AS known, count(*) FILTER (WHERE received_at >= $1) AS heard
FROM meter_status
UNION ALL
SELECT 'vehicle', count(*), count(*) FILTER (WHERE received_at >= $1)
FROM vehicle_status;
