-- Drop what the coordinator still holds of a table whose rows were moved to the nodes.
SELECT truncate_local_data_after_distributing_table($1::text::regclass);
