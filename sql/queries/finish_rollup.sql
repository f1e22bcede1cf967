-- All devices of the kind are rolled up through $2, and what counters count through $3.
UPDATE rollup_state
SET rolled_through = $2, counted_through = $3, rolled_device = ''
WHERE kind = $1;
