-- The kWh of some devices ($1) from the eighth reading before $2 to the third behind $3, in the order of time: what tells
-- what they count from an hour after $2 to $3. Times are Unix seconds.
--
-- $4, $5: between these times readings may be looked at. All times are constants, so that the planner leaves out the other
-- days' partitions; a single device is one, so that a distributed database asks one node.
SELECT
    device.{device_id} AS id,
    series.times_s,
    series.kwh
FROM {kind}_status AS device
CROSS JOIN LATERAL (
    SELECT
        array_agg(date_part('epoch', r.ts) ORDER BY r.ts) AS times_s,
        array_agg(r.{kwh} ORDER BY r.ts) AS kwh
    FROM {history} AS r
    WHERE
        r.{device_id} = device.{device_id}
        AND (cardinality($1::text[]) > 1 OR r.{device_id} = ($1::text[])[1])
        AND r.ts BETWEEN $4 AND $5
        AND r.ts >= coalesce(
            (
                SELECT min(base.ts)
                FROM (
                    SELECT b.ts
                    FROM {history} AS b
                    WHERE
                        b.{device_id} = device.{device_id}
                        AND (cardinality($1::text[]) > 1 OR b.{device_id} = ($1::text[])[1])
                        AND b.ts >= $4
                        AND b.ts < $2
                    ORDER BY b.ts DESC
                    LIMIT 8
                ) AS base
            ),
            $2
        )
        AND r.ts <= coalesce(
            (
                SELECT max(sequel.ts)
                FROM (
                    SELECT a.ts
                    FROM {history} AS a
                    WHERE
                        a.{device_id} = device.{device_id}
                        AND (cardinality($1::text[]) > 1 OR a.{device_id} = ($1::text[])[1])
                        AND a.ts >= $3
                        AND a.ts <= $5
                    ORDER BY a.ts
                    LIMIT 3
                ) AS sequel
            ),
            $3
        )
) AS series
WHERE
    device.{device_id} = ANY ($1::text[])
    AND (cardinality($1::text[]) > 1 OR device.{device_id} = ($1::text[])[1])
    AND series.times_s IS NOT NULL;
