-- Energy, counts and extremes of each device by UTC hour and UTC day, made from the history and kept for longer.
--
-- docs/rollups.md says what a cell is. It holds the energy of all three modes, so that a corrected mode corrects the past
-- as well. The columns day_... of an hour run from the beginning of its UTC day to its own end: what lies between two
-- hours is then a subtraction, however many hours there are between them. What is read most comes first in a row.

CREATE TABLE meter_hour (
    meter_id text COLLATE "C" NOT NULL,
    hour timestamptz NOT NULL,
    samples integer NOT NULL,
    first_ts timestamptz NOT NULL,
    last_ts timestamptz NOT NULL,
    lead_s double precision NOT NULL,
    trail_s double precision NOT NULL,
    first_cadence_s double precision NOT NULL,
    last_cadence_s double precision NOT NULL,
    covered_s double precision NOT NULL,
    kwh_interval double precision NOT NULL,
    kwh_register double precision NOT NULL,
    kwh_session double precision NOT NULL,
    day_lead_s double precision NOT NULL,
    day_first_cadence_s double precision NOT NULL,
    day_covered_s double precision NOT NULL,
    day_kwh_interval double precision NOT NULL,
    day_kwh_register double precision NOT NULL,
    day_kwh_session double precision NOT NULL,
    register_impossible_steps integer NOT NULL,
    register_resets integer NOT NULL,
    register_dips integer NOT NULL,
    register_glitches integer NOT NULL,
    session_impossible_steps integer NOT NULL,
    session_resets integer NOT NULL,
    session_dips integer NOT NULL,
    session_glitches integer NOT NULL,
    kwh_min double precision NOT NULL,
    kwh_max double precision NOT NULL,
    voltage_min double precision NOT NULL,
    voltage_max double precision NOT NULL,
    voltage_sum double precision NOT NULL,
    PRIMARY KEY (meter_id, hour)
) PARTITION BY RANGE (hour);

CREATE INDEX meter_hour_of_hour ON meter_hour (hour);

CREATE TABLE meter_day (
    meter_id text COLLATE "C" NOT NULL,
    day timestamptz NOT NULL,
    samples integer NOT NULL,
    first_ts timestamptz NOT NULL,
    last_ts timestamptz NOT NULL,
    lead_s double precision NOT NULL,
    trail_s double precision NOT NULL,
    first_cadence_s double precision NOT NULL,
    last_cadence_s double precision NOT NULL,
    covered_s double precision NOT NULL,
    kwh_interval double precision NOT NULL,
    kwh_register double precision NOT NULL,
    kwh_session double precision NOT NULL,
    register_impossible_steps integer NOT NULL,
    register_resets integer NOT NULL,
    register_dips integer NOT NULL,
    register_glitches integer NOT NULL,
    session_impossible_steps integer NOT NULL,
    session_resets integer NOT NULL,
    session_dips integer NOT NULL,
    session_glitches integer NOT NULL,
    kwh_min double precision NOT NULL,
    kwh_max double precision NOT NULL,
    voltage_min double precision NOT NULL,
    voltage_max double precision NOT NULL,
    voltage_sum double precision NOT NULL,
    PRIMARY KEY (meter_id, day)
);

CREATE INDEX meter_day_of_day ON meter_day (day);

CREATE TABLE meter_late (
    meter_id text COLLATE "C" NOT NULL,
    hour timestamptz NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (meter_id, hour, id)
);

COMMENT ON TABLE meter_hour IS 'Cells of meters by UTC hour; one partition a month';
COMMENT ON COLUMN meter_hour.kwh_interval IS 'kWh if the readings are amounts; the next two if they are a register or a session counter';
COMMENT ON COLUMN meter_hour.covered_s IS 'Seconds covered between the first reading of the cell and its last';
COMMENT ON COLUMN meter_hour.lead_s IS 'Seconds from the beginning of the hour to the first reading; trail_s from the last reading to the end';
COMMENT ON COLUMN meter_hour.day_covered_s IS 'Seconds covered between the first reading of the UTC day and the last of this hour';
COMMENT ON COLUMN meter_hour.day_kwh_interval IS 'kWh from the beginning of the UTC day to the end of this hour';
COMMENT ON TABLE meter_day IS 'Cells of meters by UTC day';
COMMENT ON TABLE meter_late IS 'Hours that were rolled up before this reading of them came; a meter without a name stands for all';

CREATE TABLE vehicle_hour (
    vehicle_id text COLLATE "C" NOT NULL,
    hour timestamptz NOT NULL,
    samples integer NOT NULL,
    first_ts timestamptz NOT NULL,
    last_ts timestamptz NOT NULL,
    lead_s double precision NOT NULL,
    trail_s double precision NOT NULL,
    first_cadence_s double precision NOT NULL,
    last_cadence_s double precision NOT NULL,
    covered_s double precision NOT NULL,
    kwh_interval double precision NOT NULL,
    kwh_register double precision NOT NULL,
    kwh_session double precision NOT NULL,
    day_lead_s double precision NOT NULL,
    day_first_cadence_s double precision NOT NULL,
    day_covered_s double precision NOT NULL,
    day_kwh_interval double precision NOT NULL,
    day_kwh_register double precision NOT NULL,
    day_kwh_session double precision NOT NULL,
    register_impossible_steps integer NOT NULL,
    register_resets integer NOT NULL,
    register_dips integer NOT NULL,
    register_glitches integer NOT NULL,
    session_impossible_steps integer NOT NULL,
    session_resets integer NOT NULL,
    session_dips integer NOT NULL,
    session_glitches integer NOT NULL,
    kwh_min double precision NOT NULL,
    kwh_max double precision NOT NULL,
    soc_min double precision NOT NULL,
    soc_max double precision NOT NULL,
    soc_sum double precision NOT NULL,
    battery_temp_min double precision NOT NULL,
    battery_temp_max double precision NOT NULL,
    battery_temp_sum double precision NOT NULL,
    PRIMARY KEY (vehicle_id, hour)
) PARTITION BY RANGE (hour);

CREATE INDEX vehicle_hour_of_hour ON vehicle_hour (hour);

CREATE TABLE vehicle_day (
    vehicle_id text COLLATE "C" NOT NULL,
    day timestamptz NOT NULL,
    samples integer NOT NULL,
    first_ts timestamptz NOT NULL,
    last_ts timestamptz NOT NULL,
    lead_s double precision NOT NULL,
    trail_s double precision NOT NULL,
    first_cadence_s double precision NOT NULL,
    last_cadence_s double precision NOT NULL,
    covered_s double precision NOT NULL,
    kwh_interval double precision NOT NULL,
    kwh_register double precision NOT NULL,
    kwh_session double precision NOT NULL,
    register_impossible_steps integer NOT NULL,
    register_resets integer NOT NULL,
    register_dips integer NOT NULL,
    register_glitches integer NOT NULL,
    session_impossible_steps integer NOT NULL,
    session_resets integer NOT NULL,
    session_dips integer NOT NULL,
    session_glitches integer NOT NULL,
    kwh_min double precision NOT NULL,
    kwh_max double precision NOT NULL,
    soc_min double precision NOT NULL,
    soc_max double precision NOT NULL,
    soc_sum double precision NOT NULL,
    battery_temp_min double precision NOT NULL,
    battery_temp_max double precision NOT NULL,
    battery_temp_sum double precision NOT NULL,
    PRIMARY KEY (vehicle_id, day)
);

CREATE INDEX vehicle_day_of_day ON vehicle_day (day);

CREATE TABLE vehicle_late (
    vehicle_id text COLLATE "C" NOT NULL,
    hour timestamptz NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (vehicle_id, hour, id)
);

COMMENT ON TABLE vehicle_hour IS 'Cells of vehicles by UTC hour; one partition a month';
COMMENT ON COLUMN vehicle_hour.kwh_interval IS 'kWh if the readings are amounts; the next two if they are a register or a session counter';
COMMENT ON COLUMN vehicle_hour.covered_s IS 'Seconds covered between the first reading of the cell and its last';
COMMENT ON COLUMN vehicle_hour.lead_s IS 'Seconds from the beginning of the hour to the first reading; trail_s from the last reading to the end';
COMMENT ON COLUMN vehicle_hour.day_covered_s IS 'Seconds covered between the first reading of the UTC day and the last of this hour';
COMMENT ON COLUMN vehicle_hour.day_kwh_interval IS 'kWh from the beginning of the UTC day to the end of this hour';
COMMENT ON TABLE vehicle_day IS 'Cells of vehicles by UTC day';
COMMENT ON TABLE vehicle_late IS 'Hours that were rolled up before this reading of them came; a vehicle without a name stands for all';

-- How far each kind is rolled up. Whoever stores readings from before `closed_through` leaves a mark in ..._late; cells
-- before `rolled_through` are complete but for those marks.
CREATE TABLE rollup_state (
    kind text PRIMARY KEY,
    closed_through timestamptz NOT NULL DEFAULT '2000-01-01T00:00:00Z',
    rolled_through timestamptz NOT NULL DEFAULT '2000-01-01T00:00:00Z',
    counted_through timestamptz NOT NULL DEFAULT '2000-01-01T00:00:00Z',
    rolled_device text COLLATE "C" NOT NULL DEFAULT '',
    kept_from timestamptz NOT NULL DEFAULT '2000-01-01T00:00:00Z',
    power_max_kw double precision NOT NULL DEFAULT 500
);

INSERT INTO rollup_state (kind) VALUES ('meter'), ('vehicle');

COMMENT ON TABLE rollup_state IS 'How far the rollups of each kind of device have come';
COMMENT ON COLUMN rollup_state.counted_through IS 'What counters count is complete before this: an hour later tells what was a glitch';
COMMENT ON COLUMN rollup_state.rolled_device IS 'Devices up to this one have the hour from rolled_through on already';
COMMENT ON COLUMN rollup_state.kept_from IS 'The history before this was dropped: what was rolled up of it stays as it is';
COMMENT ON COLUMN rollup_state.power_max_kw IS 'The POWER_MAX_KW that the cells were made with';

-- Whoever stores readings takes the lock last, shared, and holds it to the end of the transaction; whoever closes hours
-- takes it alone. So a reading is either seen when its hour is rolled up, or its writer sees that the hour is closed. A
-- function, since each of its statements sees what was committed before it: also while the lock was waited for.
CREATE FUNCTION closed_through(kind_stored text) RETURNS timestamptz LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('fleetwatt rollups'));
    RETURN (SELECT s.closed_through FROM rollup_state AS s WHERE s.kind = kind_stored);
END
$$;

COMMENT ON FUNCTION closed_through IS 'Before which time a reading stored in this transaction needs a mark in ..._late';

-- As ensure_day, but without a lock: whoever makes cells has the turn for it.
CREATE FUNCTION ensure_month(parent text, month date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    starts date := date_trunc('month', month::timestamp)::date;
    partition text := parent || '_' || to_char(starts, 'YYYYMM');
BEGIN
    IF EXISTS (
        SELECT FROM pg_inherits
        WHERE inhparent = to_regclass(quote_ident(parent)) AND inhrelid = to_regclass(quote_ident(partition))
    ) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition, parent);
    EXECUTE format(
        'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        parent, partition,
        starts::timestamp AT TIME ZONE 'UTC', (starts + interval '1 month')::timestamp AT TIME ZONE 'UTC'
    );
    RETURN true;
END
$$;

COMMENT ON FUNCTION ensure_month IS 'Make the partition of a table of hours for one UTC month; false where it is there already';
