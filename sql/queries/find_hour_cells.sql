-- Cells of whole hours. $1, $2, $3: pieces, as device, start, end. $4, $5: all of them lie between these times; constants,
-- so that the planner leaves out the other months' partitions.
SELECT
    piece.n,
    cell.samples,
    cell.first_ts,
    cell.last_ts,
    cell.first_cadence_s,
    cell.last_cadence_s,
    cell.covered_s,
    cell.kwh_interval,
    cell.kwh_register,
    cell.kwh_session,
    cell.register_impossible_steps,
    cell.register_resets,
    cell.register_dips,
    cell.register_glitches,
    cell.session_impossible_steps,
    cell.session_resets,
    cell.session_dips,
    cell.session_glitches,
    {gauge_columns}
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS piece (id, starts, ends, n)
JOIN {kind}_hour AS cell ON cell.{device_id} = piece.id AND cell.hour >= piece.starts AND cell.hour < piece.ends
WHERE cell.hour >= $4 AND cell.hour < $5;
