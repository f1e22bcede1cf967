-- From now on the cells of a kind are made with this POWER_MAX_KW.
UPDATE rollup_state
SET power_max_kw = $2
WHERE kind = $1;
