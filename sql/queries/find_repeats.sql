-- Of the readings given, those whose key was taken by another one (told by its time of receipt): their place in the
-- arrays, from 1, and whether the stored values are the same. Runs in a statement of its own after the insert, so that
-- it sees what another writer committed meanwhile. All of them lie between two times, the last parameters, so
-- that the planner leaves out the other days' partitions; grouping by the key, of which there is one, keeps it to
-- looking up each.
SELECT g.n, ({r.values}) = ({g.values}) AS same
FROM unnest({arrays}) WITH ORDINALITY AS g ({columns}, n)
CROSS JOIN LATERAL (
    SELECT *
    FROM {history} AS r
    WHERE r.{device_id} = g.{device_id} AND r.ts = g.ts AND r.ts BETWEEN {bounds}
    GROUP BY r.{device_id}, r.ts
) AS r
WHERE r.received_at <> g.received_at
ORDER BY g.n;
