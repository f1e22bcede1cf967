-- End the link of vehicle $1 that begins at $2 at the moment $3; one that would then have no duration is removed.
WITH removed AS (
    DELETE FROM vehicle_meter_link
    WHERE vehicle_id = $1 AND valid_from = $2 AND valid_from = $3
)
UPDATE vehicle_meter_link
SET valid_to = $3
WHERE vehicle_id = $1 AND valid_from = $2 AND valid_from < $3;
