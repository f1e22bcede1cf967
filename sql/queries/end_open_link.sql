-- End the open link of vehicle $1 at $2, and return it; one that begins a moment ahead lasts a microsecond.
UPDATE vehicle_meter_link
SET valid_to = greatest($2, valid_from + interval '1 microsecond')
WHERE vehicle_id = $1 AND valid_to IS NULL
RETURNING vehicle_id, meter_id, valid_from, valid_to;
