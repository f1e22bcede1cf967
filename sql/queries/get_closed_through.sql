-- Before which time a reading of the kind stored in this transaction needs a mark. Holds off the closing of hours until
-- the transaction ends.
SELECT closed_through($1);
