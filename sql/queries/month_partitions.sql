-- The partitions of a table of hours and the UTC month each holds, read off its name.
SELECT child.relname AS partition, to_date(right(child.relname, 6), 'YYYYMM') AS month
FROM pg_inherits
JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
WHERE pg_inherits.inhparent = $1::regclass
ORDER BY child.relname;
