-- How many devices of a kind have ever sent a reading.
SELECT count(*)
FROM {kind}_status;
