-- The fleet in [$1, $2), whole rolled-up hours of one UTC day or two: by subtraction, without adding up hours.
--
-- $3: the last of these hours. $4, $5: the days of the first and of the last. $6: the least efficiency that is ok. $7, $8:
-- the kWh AC and the share of the window that a verdict needs. $9: how many of the worst to name. $10, $11: meters and
-- vehicles of which readings came late. $12: whether what counters count is complete.
--
-- Rows are of several sorts, told by `part`: the totals of each verdict, the worst vehicles, what unlinked meters counted,
-- and the vehicles and meters that take a closer look and are in none of the others: their link began or ended in the
-- window, they have no reading in its first or last hour, or one that came late. Of a meter that never sent anything
-- there is nothing to say. `sql.analytics` has the same rules for one vehicle; a test holds them together.
WITH
meter AS MATERIALIZED (
    SELECT
        last.meter_id,
        CASE coalesce(device.energy_mode, 'interval')
            WHEN 'register'
            THEN last.day_kwh_register + coalesce(day.kwh_register, 0) - (first.day_kwh_register - first.kwh_register)
            WHEN 'session'
            THEN last.day_kwh_session + coalesce(day.kwh_session, 0) - (first.day_kwh_session - first.kwh_session)
            ELSE last.day_kwh_interval + coalesce(day.kwh_interval, 0) - (first.day_kwh_interval - first.kwh_interval)
        END AS kwh,
        last.day_covered_s
        + coalesce(day.covered_s, 0)
        - (first.day_covered_s - first.covered_s)
        -- What is covered over midnight, at the beginning and at the end.
        + coalesce(
            least(day.trail_s + last.day_lead_s, day.last_cadence_s + last.day_first_cadence_s), 0
        )
        + least(first.first_cadence_s, first.lead_s)
        + least(last.last_cadence_s, last.trail_s) AS covered_s
    FROM meter_hour AS first
    JOIN meter_hour AS last ON last.meter_id = first.meter_id
    LEFT JOIN meter_day AS day ON day.meter_id = first.meter_id AND day.day = $4 AND $4 < $5
    LEFT JOIN device ON device.kind = 'meter' AND device.id = first.meter_id
    WHERE
        first.hour = $1
        AND last.hour = $3
        AND first.meter_id <> ALL ($10::text[])
        AND ($12 OR coalesce(device.energy_mode, 'interval') = 'interval')
),
vehicle AS MATERIALIZED (
    SELECT
        last.vehicle_id,
        CASE coalesce(device.energy_mode, 'interval')
            WHEN 'register'
            THEN last.day_kwh_register + coalesce(day.kwh_register, 0) - (first.day_kwh_register - first.kwh_register)
            WHEN 'session'
            THEN last.day_kwh_session + coalesce(day.kwh_session, 0) - (first.day_kwh_session - first.kwh_session)
            ELSE last.day_kwh_interval + coalesce(day.kwh_interval, 0) - (first.day_kwh_interval - first.kwh_interval)
        END AS kwh,
        last.day_covered_s
        + coalesce(day.covered_s, 0)
        - (first.day_covered_s - first.covered_s)
        -- What is covered over midnight, at the beginning and at the end.
        + coalesce(
            least(day.trail_s + last.day_lead_s, day.last_cadence_s + last.day_first_cadence_s), 0
        )
        + least(first.first_cadence_s, first.lead_s)
        + least(last.last_cadence_s, last.trail_s) AS covered_s
    FROM vehicle_hour AS first
    JOIN vehicle_hour AS last ON last.vehicle_id = first.vehicle_id
    LEFT JOIN vehicle_day AS day ON day.vehicle_id = first.vehicle_id AND day.day = $4 AND $4 < $5
    LEFT JOIN device ON device.kind = 'vehicle' AND device.id = first.vehicle_id
    WHERE
        first.hour = $1
        AND last.hour = $3
        AND first.vehicle_id <> ALL ($11::text[])
        AND ($12 OR coalesce(device.energy_mode, 'interval') = 'interval')
),
link AS MATERIALIZED (
    SELECT vehicle_id, meter_id, valid_from <= $1 AND coalesce(valid_to >= $2, true) AS is_whole
    FROM vehicle_meter_link
    WHERE valid_from < $2 AND coalesce(valid_to > $1, true)
),
told AS (
    SELECT
        vehicle.vehicle_id,
        link.meter_id,
        round(coalesce(meter.kwh, 0) * 1e6) / 1e6 AS ac_kwh,
        round(vehicle.kwh * 1e6) / 1e6 AS dc_kwh,
        least(1, least(vehicle.covered_s, meter.covered_s) / date_part('epoch', $2::timestamptz - $1::timestamptz)) AS coverage
    FROM vehicle
    LEFT JOIN link ON link.vehicle_id = vehicle.vehicle_id
    LEFT JOIN meter ON meter.meter_id = link.meter_id
    WHERE link.vehicle_id IS NULL OR (link.is_whole AND meter.meter_id IS NOT NULL)
),
judged AS MATERIALIZED (
    SELECT
        *,
        CASE
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
            ac_kwh,
            dc_kwh,
            round(coverage * 1e6) / 1e6 AS coverage,
            round(dc_kwh / nullif(ac_kwh, 0) * 1e6) / 1e6 AS efficiency
        FROM told
    ) AS rounded
),
unlinked_meter AS MATERIALIZED (
    SELECT meter_id, kwh
    FROM meter
    WHERE
        (SELECT count(meter_id) FROM judged) < (SELECT count(*) FROM meter)
        AND NOT EXISTS (SELECT FROM link WHERE link.meter_id = meter.meter_id)
),
worst AS (
    SELECT vehicle_id, ac_kwh, dc_kwh, coverage, status
    FROM judged
    WHERE status IN ('ok', 'low_efficiency')
    ORDER BY efficiency, vehicle_id
    LIMIT $9
)
SELECT
    'verdict' AS part,
    '' AS id,
    count(*) AS vehicles,
    sum(ac_kwh) AS ac_kwh,
    sum(dc_kwh) AS dc_kwh,
    0.0 AS coverage,
    status
FROM judged
GROUP BY status
UNION ALL
SELECT 'worst', vehicle_id, 1, ac_kwh, dc_kwh, coverage, status
FROM worst
UNION ALL
-- The counts tell whether there is anything to look for: whoever is judged, or measured, has live state.
SELECT 'odd vehicle', vehicle_id, 1, 0, 0, 0, ''
FROM vehicle_status AS status
WHERE
    (SELECT count(*) FROM judged) < (SELECT count(*) FROM vehicle_status)
    AND NOT EXISTS (SELECT FROM judged WHERE judged.vehicle_id = status.vehicle_id)
UNION ALL
SELECT DISTINCT 'odd vehicle', known.vehicle_id, 1, 0, 0, 0, ''
FROM (
    SELECT vehicle_id FROM vehicle_meter_link
    UNION ALL
    SELECT id FROM device WHERE kind = 'vehicle'
) AS known
WHERE known.vehicle_id NOT IN (SELECT vehicle_id FROM vehicle_status)
UNION ALL
SELECT 'unlinked meters', '', 0, sum(kwh), 0, 0, ''
FROM unlinked_meter
UNION ALL
SELECT 'odd meter', meter_id, 0, 0, 0, 0, ''
FROM meter_status AS status
WHERE
    (SELECT count(meter_id) FROM judged) + (SELECT count(*) FROM unlinked_meter) < (SELECT count(*) FROM meter_status)
    AND NOT EXISTS (SELECT FROM judged WHERE judged.meter_id = status.meter_id)
    AND NOT EXISTS (SELECT FROM unlinked_meter WHERE unlinked_meter.meter_id = status.meter_id);
