-- Wait for those who store readings and are at their end, and keep others from it until this transaction ends.
SELECT pg_advisory_xact_lock(hashtext('fleetwatt rollups'));
