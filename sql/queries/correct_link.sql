-- The link of vehicle $1 that begins at $2 is with meter $3 in [$4, $5).
UPDATE vehicle_meter_link
SET meter_id = $3, valid_from = $4, valid_to = $5
WHERE vehicle_id = $1 AND valid_from = $2;
