-- Of the readings given, those whose key was taken by another one (told by its time of receipt): their place in the
-- arrays, from 1, and whether the stored values are the same. Runs in a statement of its own after the insert, so that
-- it sees what another writer committed meanwhile. The bounds on ts let the planner leave out the other days' partitions;
-- grouping by the key, of which there is one, keeps it to looking up each.
SELECT g.n, (r.kwh_consumed_ac = g.kwh_consumed_ac AND r.voltage = g.voltage) AS same
FROM unnest($1::text[], $2::timestamptz[], $3::float8[], $4::float8[], $5::timestamptz[])
    WITH ORDINALITY AS g (meter_id, ts, kwh_consumed_ac, voltage, received_at, n)
CROSS JOIN LATERAL (
    SELECT *
    FROM meter_reading AS r
    WHERE r.meter_id = g.meter_id AND r.ts = g.ts AND r.ts BETWEEN $6 AND $7
    GROUP BY r.meter_id, r.ts
) AS r
WHERE r.received_at <> g.received_at
ORDER BY g.n;
