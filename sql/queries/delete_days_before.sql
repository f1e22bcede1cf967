-- Delete the cells of the UTC days before $1.
DELETE FROM {kind}_day
WHERE day < $1;
