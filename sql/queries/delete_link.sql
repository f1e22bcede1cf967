-- Delete the link of vehicle $1 that begins at $2.
DELETE FROM vehicle_meter_link WHERE vehicle_id = $1 AND valid_from = $2;
