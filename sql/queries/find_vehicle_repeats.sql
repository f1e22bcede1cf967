-- Of the readings given, those whose key was taken by another one (told by its time of receipt): their place in the
-- arrays, from 1, and whether the stored values are the same. Runs in a statement of its own after the insert, so that
-- it sees what another writer committed meanwhile. The bounds on ts let the planner leave out the other days' partitions;
-- grouping by the key, of which there is one, keeps it to looking up each.
SELECT g.n, (r.soc = g.soc AND r.kwh_delivered_dc = g.kwh_delivered_dc AND r.battery_temp = g.battery_temp) AS same
FROM unnest($1::text[], $2::timestamptz[], $3::float8[], $4::float8[], $5::float8[], $6::timestamptz[])
    WITH ORDINALITY AS g (vehicle_id, ts, soc, kwh_delivered_dc, battery_temp, received_at, n)
CROSS JOIN LATERAL (
    SELECT *
    FROM vehicle_reading AS r
    WHERE r.vehicle_id = g.vehicle_id AND r.ts = g.ts AND r.ts BETWEEN $7 AND $8
    GROUP BY r.vehicle_id, r.ts
) AS r
WHERE r.received_at <> g.received_at
ORDER BY g.n;
