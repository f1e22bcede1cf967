-- The devices of a kind that have been silent for the longest ($2 of them), each with the other end of its open link.
--
-- $1: what their ids begin with.
SELECT
    s.{device_id} AS id,
    s.ts,
    s.received_at,
    {s.values},
    (SELECT {other_id} FROM vehicle_meter_link AS l WHERE l.{device_id} = s.{device_id} AND l.valid_to IS NULL) AS linked_with
FROM (
    SELECT *
    FROM {kind}_status
    WHERE starts_with({device_id}, $1)
    ORDER BY received_at, {device_id}
    LIMIT $2
) AS s
ORDER BY s.received_at, s.{device_id};
