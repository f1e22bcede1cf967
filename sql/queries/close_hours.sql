-- Close the hours of a kind before $2, and take those before $3 for rolled up.
UPDATE rollup_state
SET
    closed_through = $2,
    rolled_through = $3,
    rolled_device = ''
WHERE kind = $1;
