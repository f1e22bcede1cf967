-- Keep what could not be stored as a reading.
INSERT INTO rejection (received_at, topic, reason, detail, payload)
SELECT *
FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::bytea[]);
