-- The links of some vehicles that were valid in [$2, $3), cut to it, with the energy modes of the meters.
SELECT
    link.vehicle_id,
    link.meter_id,
    coalesce(device.energy_mode, 'interval') AS energy_mode,
    greatest(link.valid_from, $2) AS linked_from,
    least(link.valid_to, $3) AS linked_to
FROM vehicle_meter_link AS link
LEFT JOIN device ON device.kind = 'meter' AND device.id = link.meter_id
WHERE link.vehicle_id = ANY ($1::text[]) AND link.valid_from < $3 AND $2 < coalesce(link.valid_to, 'infinity')
ORDER BY link.vehicle_id, link.valid_from;
