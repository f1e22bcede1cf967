"""What production does not need: a private broker and database, the simulated fleet, replay and measurements."""
