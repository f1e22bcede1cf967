-- The first $2 marks of hours before $1, hour by hour; those without a device, which stand for all, come first.
SELECT DISTINCT {device_id} AS id, hour
FROM {kind}_late
WHERE hour < $1
ORDER BY hour, {device_id}
LIMIT $2;
