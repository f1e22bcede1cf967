-- Roll up a kind anew from $2 on, with $3 as POWER_MAX_KW.
UPDATE rollup_state
SET
    rolled_through = least(rolled_through, greatest(kept_from, $2)),
    counted_through = least(counted_through, greatest(kept_from, $2)),
    rolled_device = '',
    power_max_kw = $3
WHERE kind = $1;
