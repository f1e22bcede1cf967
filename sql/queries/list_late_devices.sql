-- Devices with readings of hours up to $1 that came late and are not rolled up yet, at most $2 of them.
SELECT DISTINCT {device_id} AS id
FROM {kind}_late
WHERE hour <= $1
LIMIT $2;
