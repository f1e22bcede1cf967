-- Which vehicle charges at which meter, when; and how the kWh of a device are to be read.
--
-- Keys begin with the device here too. Both tables are small: where the history is distributed, they fit on each node.

CREATE TABLE device (
    id text COLLATE "C" NOT NULL CHECK (id ~ '^[A-Za-z0-9._:-]{1,64}$'),
    kind text NOT NULL CHECK (kind IN ('meter', 'vehicle')),
    energy_mode text NOT NULL DEFAULT 'interval' CHECK (energy_mode IN ('interval', 'register', 'session')),
    PRIMARY KEY (id, kind)
);

COMMENT ON TABLE device IS 'What is known of a device beyond its readings; one without a row has the defaults';
COMMENT ON COLUMN device.energy_mode IS 'Whether its kWh are amounts per reading, a lifetime register or a session counter';

CREATE TABLE vehicle_meter_link (
    vehicle_id text COLLATE "C" NOT NULL CHECK (vehicle_id ~ '^[A-Za-z0-9._:-]{1,64}$'),
    meter_id text COLLATE "C" NOT NULL CHECK (meter_id ~ '^[A-Za-z0-9._:-]{1,64}$'),
    valid_from timestamptz NOT NULL CHECK (isfinite(valid_from)),
    valid_to timestamptz CHECK (isfinite(valid_to) AND valid_to > valid_from),
    PRIMARY KEY (vehicle_id, valid_from)
);

-- Pairing takes locks and leaves no overlap. These guards hold for whoever writes to the table by hand, too.
-- An exclusion constraint on the id itself would need an extension; ranges of one 64-bit hash need none.
ALTER TABLE vehicle_meter_link
    ADD CONSTRAINT vehicle_meter_link_one_meter_a_vehicle EXCLUDE USING gist (
        int8range(hashtextextended(vehicle_id, 0), hashtextextended(vehicle_id, 0), '[]') WITH &&,
        tstzrange(valid_from, valid_to) WITH &&
    ),
    ADD CONSTRAINT vehicle_meter_link_one_vehicle_a_meter EXCLUDE USING gist (
        int8range(hashtextextended(meter_id, 0), hashtextextended(meter_id, 0), '[]') WITH &&,
        tstzrange(valid_from, valid_to) WITH &&
    );

CREATE UNIQUE INDEX vehicle_meter_link_of_meter ON vehicle_meter_link (meter_id, valid_from);

COMMENT ON TABLE vehicle_meter_link IS 'Which vehicle charged at which meter in [valid_from, valid_to); ranges of one vehicle or one meter never overlap';
COMMENT ON COLUMN vehicle_meter_link.valid_to IS 'NULL while the link is open';
