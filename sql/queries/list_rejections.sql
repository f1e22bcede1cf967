-- Rejections in the order of their receipt, behind ($6, $7); each filter is off where it is NULL. At most $8 of them,
-- and fewer where their payloads together reach $9 bytes: the first one beyond is the last.
SELECT id, received_at, topic, reason, detail, payload
FROM (
    SELECT
        *,
        sum(octet_length(payload)) OVER (ORDER BY received_at, id) - octet_length(payload) AS bytes_before
    FROM (
        SELECT id, received_at, topic, reason, detail, payload
        FROM rejection
        WHERE
            ($1::text IS NULL OR reason = $1)
            AND ($2::text IS NULL OR device = $2)
            AND ($3::timestamptz IS NULL OR received_at >= $3)
            AND ($4::timestamptz IS NULL OR received_at < $4)
            AND ($5::bigint[] IS NULL OR id = ANY($5))
            AND ($6::timestamptz IS NULL OR (received_at, id) > ($6, $7::bigint))
            AND ($10::bigint IS NULL OR id <= $10)
        ORDER BY received_at, id
        LIMIT $8
    ) AS chosen
) AS slice
WHERE bytes_before < $9
ORDER BY received_at, id;
