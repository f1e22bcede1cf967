-- Rejections that are there once however often they are sent to the table, and that can be asked for by device.
--
-- The rows of before have no fingerprint: NULL equals nothing, so they stay as they are. The table may be local to one
-- node where the history is distributed: nothing joins the two.

ALTER TABLE rejection
    ALTER COLUMN reason TYPE text COLLATE "C",
    ADD COLUMN device text COLLATE "C" NOT NULL GENERATED ALWAYS AS (
        CASE
            WHEN topic ~ '^(meters|vehicles)/[A-Za-z0-9._:-]{1,64}(/|$)' THEN split_part(topic, '/', 2)
            ELSE '-'
        END
    ) STORED,
    ADD COLUMN fingerprint bytea;

-- Serves what the index on received_at alone did, and purging by age.
CREATE UNIQUE INDEX rejection_once ON rejection (received_at, fingerprint);
DROP INDEX rejection_received_at;

CREATE INDEX rejection_of_reason ON rejection (reason, received_at);
CREATE INDEX rejection_of_device ON rejection (device, received_at);

COMMENT ON COLUMN rejection.device IS 'The second level of a topic below meters/ or vehicles/; - where that is no id';
COMMENT ON COLUMN rejection.fingerprint IS 'Hash of topic, reason, payload and, of equal ones received together, which one';
