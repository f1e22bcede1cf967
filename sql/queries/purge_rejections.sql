-- Delete the oldest rejections received before $1, at most $2 of them, and return how many. Those that a replay has in
-- hand are left alone: it takes them in another order, and who waits for rows in two orders can deadlock.
WITH purged AS (
    DELETE FROM rejection
    WHERE id IN (SELECT id FROM rejection WHERE received_at < $1 ORDER BY received_at LIMIT $2 FOR UPDATE SKIP LOCKED)
    RETURNING 1
)
SELECT count(*) FROM purged;
