-- Wait for one's turn to change links, which lasts until the transaction ends, and look at the clock only then.
SELECT pg_advisory_xact_lock(hashtext('fleetwatt links')), clock_timestamp() AS now;
