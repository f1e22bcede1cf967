-- History, live state, and the function that makes a day's partition.
--
-- Keys begin with the device, so that the tables can be distributed by device. Ids are compared as bytes
-- (COLLATE "C"): faster, and the writers that sort their rows agree on the order.

CREATE TABLE meter_reading (
    meter_id text COLLATE "C" NOT NULL,
    ts timestamptz NOT NULL,
    kwh_consumed_ac double precision NOT NULL,
    voltage double precision NOT NULL,
    received_at timestamptz NOT NULL,
    PRIMARY KEY (meter_id, ts)
) PARTITION BY RANGE (ts);

COMMENT ON TABLE meter_reading IS 'Every reading of every meter (AC, grid side) as it came; one partition a UTC day';
COMMENT ON COLUMN meter_reading.ts IS 'When the device measured; time of receipt where it did not say';
COMMENT ON COLUMN meter_reading.kwh_consumed_ac IS 'kWh; what it counts depends on the device''s energy mode';
COMMENT ON COLUMN meter_reading.voltage IS 'V';
COMMENT ON COLUMN meter_reading.received_at IS 'When the daemon received it; no two readings with one key share it';

CREATE TABLE vehicle_reading (
    vehicle_id text COLLATE "C" NOT NULL,
    ts timestamptz NOT NULL,
    soc double precision NOT NULL,
    kwh_delivered_dc double precision NOT NULL,
    battery_temp double precision NOT NULL,
    received_at timestamptz NOT NULL,
    PRIMARY KEY (vehicle_id, ts)
) PARTITION BY RANGE (ts);

COMMENT ON TABLE vehicle_reading IS 'Every reading of every vehicle (DC, battery side) as it came; one partition a UTC day';
COMMENT ON COLUMN vehicle_reading.ts IS 'When the device measured; time of receipt where it did not say';
COMMENT ON COLUMN vehicle_reading.soc IS 'State of charge, percent';
COMMENT ON COLUMN vehicle_reading.kwh_delivered_dc IS 'kWh; what it counts depends on the device''s energy mode';
COMMENT ON COLUMN vehicle_reading.battery_temp IS 'Degrees Celsius';
COMMENT ON COLUMN vehicle_reading.received_at IS 'When the daemon received it; no two readings with one key share it';

-- A live row is rewritten at each reading. The free space keeps the new version on its page, and with no index
-- other than the key PostgreSQL need not touch an index (a heap-only tuple).
CREATE TABLE meter_status (
    meter_id text COLLATE "C" PRIMARY KEY,
    ts timestamptz NOT NULL,
    kwh_consumed_ac double precision NOT NULL,
    voltage double precision NOT NULL,
    received_at timestamptz NOT NULL
) WITH (fillfactor = 50);

COMMENT ON TABLE meter_status IS 'The newest reading of each meter; moves only forward in time';

CREATE TABLE vehicle_status (
    vehicle_id text COLLATE "C" PRIMARY KEY,
    ts timestamptz NOT NULL,
    soc double precision NOT NULL,
    kwh_delivered_dc double precision NOT NULL,
    battery_temp double precision NOT NULL,
    received_at timestamptz NOT NULL
) WITH (fillfactor = 50);

COMMENT ON TABLE vehicle_status IS 'The newest reading of each vehicle; moves only forward in time';

-- ATTACH takes a lock on the parent that lets readers and writers go on; CREATE ... PARTITION OF would not.
-- The advisory lock makes two daemons that meet the same new day take turns instead of failing.
CREATE FUNCTION ensure_day(parent text, day date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    partition text := parent || '_' || to_char(day, 'YYYYMMDD');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('fleetwatt ensure_day'));
    IF EXISTS (
        SELECT FROM pg_inherits
        WHERE inhparent = to_regclass(quote_ident(parent)) AND inhrelid = to_regclass(quote_ident(partition))
    ) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition, parent);
    EXECUTE format(
        'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        parent, partition, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC'
    );
    RETURN true;
END
$$;

COMMENT ON FUNCTION ensure_day IS 'Make the partition of a history table for one UTC day; false where it is there already';
