-- The POWER_MAX_KW that the cells of a kind are made with: $2 as long as nothing is rolled up (through $3).
WITH agreed AS (
    UPDATE rollup_state
    SET power_max_kw = $2
    WHERE kind = $1 AND closed_through = $3
    RETURNING power_max_kw
)
SELECT power_max_kw
FROM agreed
UNION ALL
SELECT power_max_kw
FROM rollup_state
WHERE kind = $1 AND closed_through <> $3;
