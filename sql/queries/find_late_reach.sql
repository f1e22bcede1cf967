-- How far late readings of some devices ($1) in the hour before $2 reach: when the eighth reading from $2 on, and before
-- $3, was measured, or the last where there are fewer.
SELECT
    device.{device_id} AS id,
    (
        SELECT max(sequel.ts)
        FROM (
            SELECT r.ts
            FROM {history} AS r
            WHERE
                r.{device_id} = device.{device_id}
                AND (cardinality($1::text[]) > 1 OR r.{device_id} = ($1::text[])[1])
                AND r.ts >= $2
                AND r.ts < $3
            ORDER BY r.ts
            LIMIT 8
        ) AS sequel
    ) AS last_ts
FROM {kind}_status AS device
WHERE
    device.{device_id} = ANY ($1::text[])
    AND (cardinality($1::text[]) > 1 OR device.{device_id} = ($1::text[])[1]);
