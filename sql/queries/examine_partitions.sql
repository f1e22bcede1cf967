-- The partitions of a history table with what each takes on the disk, its indexes included.
SELECT child.relname::text AS partition, pg_total_relation_size(child.oid) AS bytes
FROM pg_inherits
JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
WHERE pg_inherits.inhparent = $1::regclass
ORDER BY child.relname;
