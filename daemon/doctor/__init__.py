"""The doctor: what `python -m daemon check` finds out. It disturbs nobody and loses nothing.

Rules:
- A daemon that runs keeps its session. Its account is then not used at all: with `use_username_as_clientid` the broker
  would take any other connection of that account for the daemon's own, and end the first one.
- Where no daemon runs, its session is entered with clean start off, with the daemon's own expiry, and acknowledging
  nothing: what waits in it stays. A session that only this visit made is ended with it.
- Everything else happens in sessions of the doctor's own, with an id made for the visit, which end with the visit: as a
  guest without a name, with the account given for it, or with the daemon's account once the broker has shown that an
  account may have several sessions.
- In the database everything is read, and one row of `rejection` is deleted: the one that the doctor sent itself.
"""
