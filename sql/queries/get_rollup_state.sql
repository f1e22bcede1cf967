-- How far the rollups of a kind of device have come.
SELECT closed_through, rolled_through, counted_through, rolled_device, kept_from, power_max_kw
FROM rollup_state
WHERE kind = $1;
