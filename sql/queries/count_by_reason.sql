-- How many rejections there are of each reason since $1, the most frequent first.
SELECT reason, count(*) AS rejections
FROM rejection
WHERE received_at >= $1
GROUP BY reason
ORDER BY rejections DESC, reason;
