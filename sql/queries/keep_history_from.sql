-- The history of a kind before $2 is dropped.
UPDATE rollup_state
SET kept_from = greatest(kept_from, $2)
WHERE kind = $1;
