-- The newest links ($4 of them) of a device that were valid in [$2, $3).
SELECT vehicle_id, meter_id, valid_from, valid_to
FROM vehicle_meter_link
WHERE {device_id} = $1 AND valid_from < $3 AND $2 < coalesce(valid_to, 'infinity')
ORDER BY valid_from DESC
LIMIT $4;
