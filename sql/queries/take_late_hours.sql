-- The first $2 marks of hours before $1, device by device; those without a device, which stand for all, come first.
SELECT DISTINCT {device_id} AS id, hour
FROM {kind}_late
WHERE hour < $1
ORDER BY {device_id}, hour
LIMIT $2;
