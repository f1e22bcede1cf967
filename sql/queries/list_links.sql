-- Links by vehicle and time, behind ($5, $6); each filter is off where it is NULL.
SELECT vehicle_id, meter_id, valid_from, valid_to
FROM vehicle_meter_link
WHERE
    ($1::text IS NULL OR vehicle_id = $1)
    AND ($2::text IS NULL OR meter_id = $2)
    AND (NOT $3::boolean OR valid_to IS NULL)
    AND ($4::timestamptz IS NULL OR (valid_from <= $4 AND $4 < coalesce(valid_to, 'infinity')))
    AND ($5::text IS NULL OR (vehicle_id, valid_from) > ($5, $6::timestamptz))
ORDER BY vehicle_id, valid_from
LIMIT $7;
