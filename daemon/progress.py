"""Whether what is received also gets somewhere. systemd's watchdog hangs on it (`daemon.notify`).

Rule: the daemon is stalled when, for `STALLED_AFTER_S`,

- readings waited, in memory or in the spool, and the writer gave no sign: no commit, and no refusal by the database;
- the database, asked over and over on a connection outside the pool, answered and was at work on nothing of ours.

Putting readings into the spool is no sign: beside a database that is free, it would only hide what is wrong.
A restart mends what is wrong in this process and nothing else. So a database that is away, out of connections, locked,
slow, or that refuses to store (no schema, no right, read-only, full) makes no restart; a wedged pool or writer does.
"""

from collections.abc import Awaitable, Callable

ASK_AFTER_S = 10.0
"""Readings that wait for less long are nothing to ask the database about."""
STALLED_AFTER_S = 60.0


class Progress:
    """Watches the writer. Ask it every few seconds: what the database says counts from the first yes after a no."""

    def __init__(
        self,
        oldest_age_s: Callable[[], float],
        last_sign_at_s: Callable[[], float],
        is_database_free: Callable[[], Awaitable[bool]],
        clock: Callable[[], float],
    ) -> None:
        """`oldest_age_s` is that of the oldest reading in memory or in the spool.

        `last_sign_at_s` is the clock's time of the last commit, or of the last error that came from the server itself.
        """
        self._oldest_age_s = oldest_age_s
        self._last_sign_at_s = last_sign_at_s
        self._is_database_free = is_database_free
        self._clock = clock
        self._free_since_s: float | None = None

    async def stall(self) -> str | None:
        """Why the daemon is stalled, in words; None where it is not."""
        if self._quiet_s() <= ASK_AFTER_S or not await self._is_database_free():
            self._free_since_s = None
            return None
        if self._free_since_s is None:
            self._free_since_s = self._clock()
        quiet_s = self._quiet_s()  # again, for something may have moved during the question
        if min(quiet_s, self._clock() - self._free_since_s) <= STALLED_AFTER_S:
            return None
        return f"for {quiet_s:.0f} s readings waited and nothing stored them, though the database is free"

    def _quiet_s(self) -> float:
        """For how long readings have been waiting without a sign of the writer."""
        return min(self._oldest_age_s(), self._clock() - self._last_sign_at_s())
