-- All devices of the kind are rolled up through closed_through.
UPDATE rollup_state
SET rolled_through = closed_through, rolled_device = ''
WHERE kind = $1;
