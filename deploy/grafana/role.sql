-- The role that Grafana reads with: as a superuser, in the database, once it was migrated, and again after an upgrade. It
-- has no password yet.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'fleetwatt_grafana') THEN
        CREATE ROLE fleetwatt_grafana LOGIN;
    END IF;
END
$$;

-- Whoever may edit a panel may ask anything: that must not take the database from the daemon.
ALTER ROLE fleetwatt_grafana CONNECTION LIMIT 20;
ALTER ROLE fleetwatt_grafana SET default_transaction_read_only = on;
ALTER ROLE fleetwatt_grafana SET statement_timeout = '30s';
-- The sums over a fleet then stay in memory.
ALTER ROLE fleetwatt_grafana SET work_mem = '64MB';

GRANT SELECT ON meter_reading, vehicle_reading, meter_status, vehicle_status TO fleetwatt_grafana;
GRANT SELECT ON meter_hour, vehicle_hour, meter_day, vehicle_day TO fleetwatt_grafana;
GRANT SELECT ON meter_late, vehicle_late, rollup_state TO fleetwatt_grafana;
GRANT SELECT ON vehicle_meter_link, device TO fleetwatt_grafana;
-- Without what came: anybody may have sent anything.
GRANT SELECT (id, received_at, reason, device) ON rejection TO fleetwatt_grafana;
