-- Where Citus keeps the tables $1, by whose hash, and beside which others; those that it does not know are left out.
SELECT
    given.name,
    CASE
        WHEN place.partmethod = 'h' THEN 'distributed'
        WHEN place.repmodel = 't' THEN 'reference'
        ELSE 'local'
    END AS kept,
    column_to_column_name(place.logicalrelid, place.partkey) AS distributed_by,
    place.colocationid AS colocation
FROM unnest($1::text[]) AS given (name)
JOIN pg_dist_partition AS place ON place.logicalrelid = to_regclass(given.name);
