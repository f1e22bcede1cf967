-- What kind of server this is, as this session sees it.
SELECT
    current_setting('server_version') AS version,
    current_setting('server_version_num')::integer AS version_number,
    current_user::text AS account,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
    current_database()::text AS database,
    pg_is_in_recovery() AS is_standby,
    current_setting('default_transaction_read_only')::boolean AS is_read_only,
    current_setting('TimeZone') AS time_zone,
    clock_timestamp() AS clock,
    host(inet_server_addr()) AS address,
    (SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl) AS tls_version,
    current_setting('fsync')::boolean AS fsync,
    current_setting('full_page_writes')::boolean AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS data_directory,
    -- What is left for this account while the others keep theirs: by the server, the account and the database.
    least(
        (
            SELECT sum(CASE WHEN name = 'max_connections' THEN setting::integer ELSE -setting::integer END)
            FROM pg_settings
            WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')
        ) - (
            SELECT count(*)
            FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND usename <> current_user
        ),
        (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
        (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database())
    )::integer AS connections;
