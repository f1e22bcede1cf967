-- All devices of the kind up to $2 have the hour from rolled_through on.
UPDATE rollup_state
SET rolled_device = $2
WHERE kind = $1;
