-- Rejections of the last day, by reason.
SELECT reason, count(*) AS rejections
FROM rejection
WHERE received_at > now() - interval '1 day'
GROUP BY reason
ORDER BY rejections DESC, reason;
