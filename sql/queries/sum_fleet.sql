-- The fleet in [$1, $2), of which [$13, $14) are whole rolled-up hours: by subtraction, without adding up hours.
--
-- $3: the last of these hours. $4, $5: the UTC days of the first and of the last. $6: the least efficiency that is ok. $7, $8:
-- the kWh AC and the share of the window that a verdict needs. $9: how many of the worst to name. $10, $11: meters and
-- vehicles of which readings came late. $12: the hours in which a counter must have behaved well. `sum_hours` is what each
-- device comes to.
--
-- Rows are of several sorts, told by `part`: the totals of each verdict, the worst vehicles, what unlinked meters counted,
-- and the vehicles and meters that take a closer look and are in none of the others: `sum_hours` cannot tell, or their
-- link began or ended in the window. Of a meter that never sent anything there is nothing to say. `sql.analytics` has the
-- same rules for one vehicle; a test holds them together.
WITH
meter AS MATERIALIZED ({meter_hours}),
vehicle AS MATERIALIZED ({vehicle_hours}),
link AS MATERIALIZED (
    SELECT vehicle_id, meter_id, valid_from <= $1 AND coalesce(valid_to >= $2, true) AS is_whole
    FROM vehicle_meter_link
    WHERE valid_from < $2 AND coalesce(valid_to > $1, true)
),
judged AS MATERIALIZED (
    SELECT
        *,
        CASE
            WHEN dc_kwh IS NULL OR (meter_id IS NOT NULL AND (ac_kwh IS NULL OR NOT is_whole)) THEN 'odd'
            WHEN meter_id IS NULL THEN 'unlinked'
            WHEN ac_kwh = 0 THEN 'no_ac_energy'
            WHEN ac_kwh < $7 OR coverage < $8 THEN 'insufficient_data'
            WHEN efficiency > 1 THEN 'above_unity'
            WHEN efficiency < $6 THEN 'low_efficiency'
            ELSE 'ok'
        END AS status
    FROM (
        SELECT
            vehicle_id,
            meter_id,
            is_whole,
            ac_kwh,
            dc_kwh,
            round(least(1, covered_s / date_part('epoch', $2::timestamptz - $1::timestamptz)) * 1e6) / 1e6 AS coverage,
            round(dc_kwh / nullif(ac_kwh, 0) * 1e6) / 1e6 AS efficiency
        FROM (
            SELECT
                vehicle.vehicle_id,
                link.meter_id,
                link.is_whole,
                round(meter.kwh * 1e6) / 1e6 AS ac_kwh,
                round(vehicle.kwh * 1e6) / 1e6 AS dc_kwh,
                least(vehicle.covered_s, meter.covered_s) AS covered_s
            FROM vehicle
            LEFT JOIN link ON link.vehicle_id = vehicle.vehicle_id
            LEFT JOIN meter ON meter.meter_id = link.meter_id
        ) AS told
    ) AS rounded
),
verdict AS MATERIALIZED (
    SELECT status, count(*) AS vehicles, count(meter_id) AS meters, sum(ac_kwh) AS ac_kwh, sum(dc_kwh) AS dc_kwh
    FROM judged
    WHERE status <> 'odd'
    GROUP BY status
),
unlinked_meter AS MATERIALIZED (
    SELECT meter_id, kwh
    FROM meter
    WHERE
        (SELECT count(*) FROM meter) > (SELECT coalesce(sum(meters), 0) FROM verdict)
        AND kwh IS NOT NULL
        AND NOT EXISTS (SELECT FROM link WHERE link.meter_id = meter.meter_id)
),
worst AS (
    SELECT vehicle_id, ac_kwh, dc_kwh, coverage, status
    FROM judged
    WHERE status IN ('ok', 'low_efficiency')
    ORDER BY efficiency, vehicle_id
    LIMIT $9
)
SELECT 'verdict' AS part, '' AS id, vehicles, ac_kwh, dc_kwh, 0.0 AS coverage, status
FROM verdict
UNION ALL
SELECT 'worst', vehicle_id, 1, ac_kwh, dc_kwh, coverage, status
FROM worst
UNION ALL
-- Here and below the counts tell whether there is anything to look for: whoever is judged, or measured, has live state.
SELECT 'odd vehicle', known.vehicle_id, 1, 0.0, 0.0, 0.0, ''
FROM vehicle_status AS known
WHERE
    (SELECT coalesce(sum(vehicles), 0) FROM verdict) < (SELECT count(*) FROM vehicle_status)
    AND NOT EXISTS (SELECT FROM judged WHERE judged.vehicle_id = known.vehicle_id AND judged.status <> 'odd')
UNION ALL
SELECT DISTINCT 'odd vehicle', known.vehicle_id, 1, 0.0, 0.0, 0.0, ''
FROM (
    SELECT vehicle_id FROM vehicle_meter_link
    UNION ALL
    SELECT id FROM device WHERE kind = 'vehicle'
) AS known
WHERE known.vehicle_id NOT IN (SELECT vehicle_id FROM vehicle_status)
UNION ALL
SELECT 'unlinked meters', '', 0, sum(kwh), 0.0, 0.0, ''
FROM unlinked_meter
UNION ALL
SELECT 'odd meter', known.meter_id, 0, 0.0, 0.0, 0.0, ''
FROM meter_status AS known
WHERE
    (SELECT coalesce(sum(meters), 0) FROM verdict) + (SELECT count(*) FROM unlinked_meter)
    < (SELECT count(*) FROM meter_status)
    AND NOT EXISTS (SELECT FROM judged WHERE judged.meter_id = known.meter_id AND judged.status <> 'odd')
    AND NOT EXISTS (SELECT FROM unlinked_meter WHERE unlinked_meter.meter_id = known.meter_id);
