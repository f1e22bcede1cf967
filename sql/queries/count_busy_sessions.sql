-- Count the other sessions of this account and application_name whose statement keeps the server busy or waits in it.
SELECT count(*)
FROM pg_stat_activity
WHERE usename = current_user
  AND application_name = current_setting('application_name')
  AND pid <> pg_backend_pid()
  AND wait_event_type IS DISTINCT FROM 'Client';
