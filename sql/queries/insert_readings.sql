-- The slow way: store the readings whose key (device, time) is new, leave the others, and return how many were new.
WITH stored AS (
    INSERT INTO {history} ({columns})
    SELECT *
    FROM unnest({arrays})
    ON CONFLICT DO NOTHING
    RETURNING 1
)
SELECT count(*) FROM stored;
