-- Delete the oldest rejections received before $1, at most $2 of them, and return how many.
WITH purged AS (
    DELETE FROM rejection
    WHERE id IN (SELECT id FROM rejection WHERE received_at < $1 ORDER BY received_at LIMIT $2)
    RETURNING 1
)
SELECT count(*) FROM purged;
