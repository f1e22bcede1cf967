-- From when on readings of the kind are still to be rolled up: the first time, or those that came late.
SELECT least(state.counted_through, (SELECT min(hour) FROM {kind}_late))
FROM rollup_state AS state
WHERE state.kind = $1;
