-- Energy of meters whose readings are counters, by span, with what the readings cover and how oddly they behaved.
--
-- $1, $2: meters and their energy modes, register or session. $3, $4, $5: spans within the window, as meter, start,
-- end; those of one meter do not overlap. $6, $7: the window. $8, $9: how far beyond it readings may be looked at.
-- $10: kW that nobody exceeds. $11: seconds between readings where there are too few to tell.
-- A row for each meter and span with readings; one with span NULL for the readings outside of all spans.
-- All times are parameters, so that the planner leaves out the other days' partitions. docs/energy.md has the rules.
SELECT device.meter_id AS id, energy.*
FROM unnest($1::text[], $2::text[]) AS device (meter_id, energy_mode)
CROSS JOIN LATERAL (
    WITH
    span AS MATERIALIZED (
        SELECT s.n, s.starts, s.ends
        FROM unnest($3::text[], $4::timestamptz[], $5::timestamptz[])
            WITH ORDINALITY AS s (meter_id, starts, ends, n)
        WHERE s.meter_id = device.meter_id
    ),
    -- A counter's readings in the window, with a few before it as their base and a few after it, which tell a glitch.
    counted AS (
        SELECT
            r.ts,
            r.kwh_consumed_ac AS kwh,
            lag(r.ts) OVER by_time AS previous_ts,
            lag(r.kwh_consumed_ac) OVER by_time AS previous,
            lead(r.kwh_consumed_ac) OVER by_time AS following,
            greatest(
                lag(r.kwh_consumed_ac, 1) OVER by_time,
                lag(r.kwh_consumed_ac, 2) OVER by_time,
                lag(r.kwh_consumed_ac, 3) OVER by_time
            ) AS before,
            greatest(
                lead(r.kwh_consumed_ac, 1) OVER by_time,
                lead(r.kwh_consumed_ac, 2) OVER by_time,
                lead(r.kwh_consumed_ac, 3) OVER by_time
            ) AS after
        FROM meter_reading AS r
        WHERE
            r.meter_id = device.meter_id
            AND r.ts BETWEEN $8 AND $9
            AND r.ts >= coalesce(
                (
                    SELECT min(base.ts)
                    FROM (
                        SELECT b.ts
                        FROM meter_reading AS b
                        WHERE b.meter_id = device.meter_id AND b.ts >= $8 AND b.ts < $6
                        ORDER BY b.ts DESC
                        LIMIT 4
                    ) AS base
                ),
                $6
            )
            AND r.ts <= coalesce(
                (
                    SELECT max(sequel.ts)
                    FROM (
                        SELECT a.ts
                        FROM meter_reading AS a
                        WHERE a.meter_id = device.meter_id AND a.ts >= $7 AND a.ts <= $9
                        ORDER BY a.ts
                        LIMIT 3
                    ) AS sequel
                ),
                $7
            )
        WINDOW by_time AS (ORDER BY r.ts)
    ),
    -- What is back at once: a fall that the former level follows, or an impossible rise that a fall follows.
    judged AS MATERIALIZED (
        SELECT
            ts,
            kwh,
            previous_ts,
            coalesce(
                CASE device.energy_mode
                    WHEN 'register' THEN kwh < 0.9 * before AND after >= 0.9 * before
                    ELSE kwh < 0.9 * previous AND following BETWEEN previous AND 1.1 * previous
                END,
                false
            ) AS glitch,
            coalesce(
                kwh - before > $10 * date_part('epoch', ts - previous_ts) / 3600 + 1e-9 AND following < kwh,
                false
            ) AS spike
        FROM counted
    ),
    -- The rest of the counter's readings, each with the one before it.
    paired AS (
        SELECT
            ts,
            kwh,
            previous_ts,
            lag(kwh) OVER by_time AS previous,
            date_part('epoch', ts - lag(ts) OVER by_time) / 3600 AS hours
        FROM judged
        WHERE NOT glitch AND NOT spike
        WINDOW by_time AS (ORDER BY ts)
    ),
    -- Each reset opens a segment.
    segmented AS (
        SELECT *, count(*) FILTER (WHERE kwh < 0.9 * previous) OVER (ORDER BY ts ROWS UNBOUNDED PRECEDING) AS segment
        FROM paired
    ),
    -- Within a segment only what exceeds its highest level so far is energy.
    stepped AS (
        SELECT
            *,
            CASE
                WHEN previous IS NULL THEN 0
                WHEN kwh < 0.9 * previous THEN kwh
                ELSE greatest(0, kwh - max(kwh) OVER so_far)
            END AS step
        FROM segmented
        WINDOW so_far AS (PARTITION BY segment ORDER BY ts ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
    ),
    reading AS MATERIALIZED (
        SELECT
            ts,
            CASE WHEN step > $10 * hours + 1e-9 THEN 0 ELSE step END AS kwh,
            previous_ts,
            step > $10 * hours + 1e-9 AS impossible,
            kwh < 0.9 * previous AS reset,
            kwh < previous AND kwh >= 0.9 * previous AS dip,
            false AS glitch
        FROM stepped
        WHERE ts >= $6 AND ts < $7
        UNION ALL
        SELECT ts, 0 AS kwh, previous_ts, spike AS impossible, false AS reset, false AS dip, glitch
        FROM judged
        WHERE (glitch OR spike) AND ts >= $6 AND ts < $7
    ),
    -- The usual distance of readings: their median, within reason.
    cadence AS MATERIALIZED (
        SELECT
            greatest('1 second', least('1 hour', coalesce(
                percentile_disc(0.5) WITHIN GROUP (ORDER BY ts - previous_ts), make_interval(secs => $11)
            ))) AS gap
        FROM reading
        WHERE previous_ts >= $6
    )
    SELECT
        span.n AS span,
        count(*) AS samples,
        sum(kwh) AS kwh,
        count(*) FILTER (WHERE impossible) AS impossible_steps,
        count(*) FILTER (WHERE reset) AS resets,
        count(*) FILTER (WHERE dip) AS dips,
        count(*) FILTER (WHERE glitch) AS glitches,
        -- Covered is what lies within one cadence of a reading.
        date_part(
            'epoch',
            least(cadence.gap, min(ts) - coalesce(span.starts, $6))
            + least(cadence.gap, coalesce(span.ends, $7) - max(ts))
            + coalesce(
                sum(least(2 * cadence.gap, ts - previous_ts)) FILTER (WHERE previous_ts >= coalesce(span.starts, $6)),
                '0'
            )
        ) AS covered_s
    FROM reading
    CROSS JOIN cadence
    LEFT JOIN span ON ts >= span.starts AND ts < span.ends
    GROUP BY span.n, span.starts, span.ends, cadence.gap
) AS energy;
