-- Energy of vehicles whose readings are amounts, by span, with what the readings cover.
--
-- $1: vehicles. $2, $3, $4: spans within the window, as vehicle, beginning, end; those of one vehicle do not overlap.
-- $5, $6: the window. $7: seconds between readings where there are too few to tell.
-- A row for each vehicle and span with readings; one with span NULL for the readings outside of all spans.
-- All times are parameters, so that the planner leaves out the other days' partitions. docs/energy.md has the rules.
SELECT device.vehicle_id AS id, energy.*
FROM unnest($1::text[]) AS device (vehicle_id)
CROSS JOIN LATERAL (
    WITH
    span AS MATERIALIZED (
        SELECT s.n, s.starts, s.ends
        FROM unnest($2::text[], $3::timestamptz[], $4::timestamptz[])
            WITH ORDINALITY AS s (vehicle_id, starts, ends, n)
        WHERE s.vehicle_id = device.vehicle_id
    ),
    reading AS MATERIALIZED (
        SELECT
            ts,
            kwh_delivered_dc AS kwh,
            battery_temp,
            lag(ts) OVER (ORDER BY ts) AS previous_ts
        FROM vehicle_reading
        WHERE vehicle_id = device.vehicle_id AND ts >= $5 AND ts < $6
    ),
    -- The usual distance of readings: their median, within reason.
    cadence AS MATERIALIZED (
        SELECT
            greatest('1 second', least('1 hour', coalesce(
                percentile_disc(0.5) WITHIN GROUP (ORDER BY ts - previous_ts), make_interval(secs => $7)
            ))) AS gap
        FROM reading
        WHERE previous_ts >= $5
    )
    SELECT
        span.n AS span,
        count(*) AS samples,
        sum(kwh) AS kwh,
        sum(battery_temp) AS battery_temp_sum,
        -- Covered is what lies within one cadence of a reading.
        date_part(
            'epoch',
            least(cadence.gap, min(ts) - coalesce(span.starts, $5))
            + least(cadence.gap, coalesce(span.ends, $6) - max(ts))
            + coalesce(
                sum(least(2 * cadence.gap, ts - previous_ts)) FILTER (WHERE previous_ts >= coalesce(span.starts, $5)),
                '0'
            )
        ) AS covered_s
    FROM reading
    CROSS JOIN cadence
    LEFT JOIN span ON ts >= span.starts AND ts < span.ends
    GROUP BY span.n, span.starts, span.ends, cadence.gap
) AS energy;
