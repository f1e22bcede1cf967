-- Mark the hour $1 for each device that has readings in it.
INSERT INTO {kind}_late ({device_id}, hour)
SELECT DISTINCT {device_id}, $1::timestamptz
FROM {history}
WHERE ts >= $1 AND ts < $1::timestamptz + interval '1 hour';
