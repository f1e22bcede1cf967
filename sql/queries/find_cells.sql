-- The cell of each piece of whole hours or UTC days that has readings, from the hours or days in it.
--
-- $1, $2, $3: pieces, as device, start, end. $4, $5: all of them lie between these times; constants, so that the planner
-- leaves out the other months' partitions of hours.
SELECT
    n,
    sum(samples)::integer AS samples,
    min(first_ts) AS first_ts,
    max(last_ts) AS last_ts,
    (array_agg(first_cadence_s ORDER BY {step}))[1] AS first_cadence_s,
    (array_agg(last_cadence_s ORDER BY {step} DESC))[1] AS last_cadence_s,
    -- Of the silence between two cells, what lies within one cadence of a reading.
    sum(covered_s + coalesce(least(date_part('epoch', first_ts - last_ts_before), reach_s_before + first_cadence_s), 0))
        AS covered_s,
    sum(kwh_interval) AS kwh_interval,
    sum(kwh_register) AS kwh_register,
    sum(kwh_session) AS kwh_session,
    sum(register_impossible_steps)::integer AS register_impossible_steps,
    sum(register_resets)::integer AS register_resets,
    sum(register_dips)::integer AS register_dips,
    sum(register_glitches)::integer AS register_glitches,
    sum(session_impossible_steps)::integer AS session_impossible_steps,
    sum(session_resets)::integer AS session_resets,
    sum(session_dips)::integer AS session_dips,
    sum(session_glitches)::integer AS session_glitches,
    {gauge_totals}
FROM (
    SELECT
        piece.n,
        cell.*,
        lag(cell.last_ts) OVER by_time AS last_ts_before,
        lag(cell.last_cadence_s) OVER by_time AS reach_s_before
    FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS piece (id, starts, ends, n)
    JOIN {kind}_{step} AS cell
        ON cell.{device_id} = piece.id AND cell.{step} >= piece.starts AND cell.{step} < piece.ends
    WHERE cell.{step} >= $4 AND cell.{step} < $5
    WINDOW by_time AS (PARTITION BY cell.{device_id}, piece.n ORDER BY cell.{step})
) AS seamed
GROUP BY {device_id}, n;
