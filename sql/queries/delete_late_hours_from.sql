-- Delete the marks of hours from $1 on, before what is rolled up ($2): all of it is about to be rolled up anew.
DELETE FROM {kind}_late
WHERE hour >= $1 AND hour < $2;
