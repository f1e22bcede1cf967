-- Spread the rows of a table over the workers by the hash of a column, beside those of another table or of 'none'.
SELECT create_distributed_table($1::text::regclass, $2, colocate_with => $3);
