-- End the open link of vehicle $1 at $2, and return it; one that begins a moment ahead lasts a microsecond. (Adding to a
-- time without a zone asks for no setting of the session, which a distributed database does not take in an UPDATE.)
-- Where $3 is not NULL, only a link that begins then.
UPDATE vehicle_meter_link
SET valid_to = greatest($2, (valid_from AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC')
WHERE vehicle_id = $1 AND valid_to IS NULL AND ($3::timestamptz IS NULL OR valid_from = $3)
RETURNING vehicle_id, meter_id, valid_from, valid_to;
