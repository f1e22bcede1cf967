-- The links of a vehicle or of a meter that overlap [$3, $4), or that overlap all from $3 on where $4 is NULL.
SELECT vehicle_id, meter_id, valid_from, valid_to
FROM vehicle_meter_link
WHERE
    (vehicle_id = $1 OR meter_id = $2)
    AND valid_from < coalesce($4::timestamptz, 'infinity')
    AND $3 < coalesce(valid_to, 'infinity')
ORDER BY valid_from, vehicle_id;
