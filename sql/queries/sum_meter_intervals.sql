-- Energy in [$1, $2) of all meters whose readings are amounts.
SELECT coalesce(sum(r.kwh_consumed_ac), 0)
FROM meter_reading AS r
WHERE
    r.ts >= $1
    AND r.ts < $2
    AND NOT EXISTS (
        SELECT FROM device AS d WHERE d.kind = 'meter' AND d.id = r.meter_id AND d.energy_mode <> 'interval'
    );
