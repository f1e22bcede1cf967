-- Keep all rows of a table on every node.
SELECT create_reference_table($1::text::regclass);
