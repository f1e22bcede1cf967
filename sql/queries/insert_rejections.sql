-- Keep what could not be stored as a reading, unless an earlier try did: its answer may have been lost.
INSERT INTO rejection (received_at, topic, reason, detail, payload, fingerprint)
SELECT *
FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::bytea[])
ON CONFLICT (received_at, fingerprint) DO NOTHING;
