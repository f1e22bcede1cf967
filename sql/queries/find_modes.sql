-- The energy modes of some devices of a kind; those that are not named have the default.
SELECT id, energy_mode
FROM device
WHERE kind = $1 AND id = ANY ($2::text[]);
