-- Rejections by reason and device, the largest groups first, each with its newest one; each filter is off where it is
-- NULL. At most the newest $5 are looked at; `found` says how many were, `groups` in how many groups they are.
WITH newest AS (
    SELECT id, received_at, reason, device
    FROM rejection
    WHERE
        ($1::text IS NULL OR reason = $1)
        AND ($2::text IS NULL OR device = $2)
        AND ($3::timestamptz IS NULL OR received_at >= $3)
        AND ($4::timestamptz IS NULL OR received_at < $4)
    ORDER BY received_at DESC
    LIMIT $5
),
grouped AS (
    SELECT
        reason,
        device,
        count(*) AS rejections,
        min(received_at) AS first_received_at,
        max(received_at) AS last_received_at,
        max(id) AS example_id,
        sum(count(*)) OVER ()::bigint AS found,
        count(*) OVER () AS groups
    FROM newest
    GROUP BY reason, device
    ORDER BY rejections DESC, reason, device
    LIMIT $6
)
SELECT grouped.*, example.detail AS example_detail
FROM grouped
JOIN rejection AS example ON example.id = grouped.example_id
ORDER BY rejections DESC, reason, device;
