-- Close the hours of a kind before $2, and take those before $3, where there is no history to roll up, for done.
UPDATE rollup_state
SET
    closed_through = $2,
    rolled_through = $3,
    rolled_device = ''
WHERE kind = $1;
