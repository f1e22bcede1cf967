-- How far late readings reach: when the eighth reading after their hour was measured, or the last where there are fewer.
--
-- $1, $2: devices and the hours of their late readings. $3, $4: between these times readings are looked at.
SELECT late.id, late.hour, (
    SELECT max(sequel.ts)
    FROM (
        SELECT r.ts
        FROM {history} AS r
        WHERE
            r.{device_id} = late.id
            AND r.ts >= late.hour + interval '1 hour'
            AND r.ts < late.hour + interval '31 days'
            AND r.ts BETWEEN $3 AND $4
        ORDER BY r.ts
        LIMIT 8
    ) AS sequel
) AS last_ts
FROM unnest($1::text[], $2::timestamptz[]) AS late (id, hour);
