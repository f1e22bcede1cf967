-- Energy in [$1, $2) of all vehicles whose readings are amounts.
SELECT coalesce(sum(r.kwh_delivered_dc), 0)
FROM vehicle_reading AS r
WHERE
    r.ts >= $1
    AND r.ts < $2
    AND NOT EXISTS (
        SELECT FROM device AS d WHERE d.kind = 'vehicle' AND d.id = r.vehicle_id AND d.energy_mode <> 'interval'
    );
