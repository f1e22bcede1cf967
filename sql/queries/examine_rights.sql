-- What the account may not do, of the privileges $2 on the relations $1, of owning the relations $3 and of the schema.
SELECT needed.privilege || ' on ' || needed.relation AS missing
FROM unnest($1::text[], $2::text[]) AS needed (relation, privilege)
WHERE NOT has_table_privilege(to_regclass(needed.relation), needed.privilege)
UNION ALL
-- Attaching a day's partition, and dropping it, takes the owner of the table, or a member of the owner's role.
SELECT 'OWNER of ' || owned.relation
FROM unnest($3::text[]) AS owned (relation)
JOIN pg_class ON pg_class.oid = to_regclass(owned.relation)
WHERE NOT pg_has_role(pg_class.relowner, 'USAGE')
UNION ALL
SELECT 'CREATE on schema ' || current_schema()
WHERE NOT has_schema_privilege(current_schema(), 'CREATE')
ORDER BY missing;
