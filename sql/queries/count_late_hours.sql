-- How many marks of late readings wait.
SELECT count(*)
FROM (SELECT DISTINCT {device_id}, hour FROM {kind}_late) AS late;
