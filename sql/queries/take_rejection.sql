-- Delete the rejections after the id $1 with exactly this payload.
DELETE FROM rejection WHERE id > $1 AND payload = $2 RETURNING id;
