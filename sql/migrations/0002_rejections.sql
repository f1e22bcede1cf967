-- What could not be stored as a reading, with its bytes, so that it can be looked at and sent again.

CREATE TABLE rejection (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at timestamptz NOT NULL,
    topic text NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL,
    payload bytea NOT NULL
);

CREATE INDEX rejection_received_at ON rejection (received_at);

COMMENT ON TABLE rejection IS 'Messages, or elements of an array, that could not be stored as a reading';
COMMENT ON COLUMN rejection.reason IS 'One of the reasons of docs/readings.md';
COMMENT ON COLUMN rejection.detail IS 'A sentence for people';
COMMENT ON COLUMN rejection.payload IS 'The bytes as they came; of an array, those of the bad element';
