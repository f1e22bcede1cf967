-- Delete rejections by their ids.
DELETE FROM rejection WHERE id = ANY($1::bigint[]);
