-- The oldest transaction that keeps vacuum from its work, as far as this account may see: whose, and for how long.
SELECT whose, date_part('epoch', clock_timestamp() - began)::float8 AS age_s
FROM (
    SELECT format('pid %s of %s', pid, usename) AS whose, xact_start AS began
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
    UNION ALL
    SELECT format('prepared transaction %s', gid), prepared
    FROM pg_prepared_xacts
) AS oldest
WHERE began IS NOT NULL
ORDER BY began
LIMIT 1;
