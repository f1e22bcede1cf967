-- The id of the newest rejection, 0 where there is none.
SELECT coalesce(max(id), 0) FROM rejection;
