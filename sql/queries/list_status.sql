-- Live state of the devices of a kind with an id behind $1, in the order of their ids.
SELECT
    s.{device_id} AS id,
    s.ts,
    greatest(0, extract(epoch FROM now() - s.ts))::float8 AS age_s,
    s.received_at,
    coalesce(d.energy_mode, 'interval') AS energy_mode,
    {s.values}
FROM {kind}_status AS s
LEFT JOIN device AS d ON d.id = s.{device_id} AND d.kind = '{kind}'
WHERE s.{device_id} > $1
ORDER BY s.{device_id}
LIMIT $2;
