-- All devices of the kind up to $2 are rolled up through closed_through.
UPDATE rollup_state
SET rolled_device = $2
WHERE kind = $1;
