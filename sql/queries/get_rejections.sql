-- Some rejections, each with the first $2 bytes of its payload.
SELECT
    id,
    received_at,
    topic,
    device,
    reason,
    detail,
    octet_length(payload) AS payload_bytes,
    substring(payload FOR $2::integer) AS payload
FROM rejection
WHERE id = ANY ($1::bigint[])
ORDER BY id;
