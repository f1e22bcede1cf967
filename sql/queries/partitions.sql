-- The partitions of a history table and the UTC day each holds, read off its name.
SELECT child.relname AS partition, to_date(right(child.relname, 8), 'YYYYMMDD') AS day
FROM pg_inherits
JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
WHERE pg_inherits.inhparent = $1::regclass
ORDER BY child.relname;
