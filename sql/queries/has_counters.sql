-- Whether any device is read as a counter.
SELECT EXISTS (SELECT FROM device WHERE energy_mode <> 'interval');
