-- Whether the database is, or may become, one of a Citus cluster.
SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus');
