-- Whether this transaction may do the work of that name, which nobody else does until it ends. It does not wait.
SELECT pg_try_advisory_xact_lock(hashtext('fleetwatt ' || $1::text));
