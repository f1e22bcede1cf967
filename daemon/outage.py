"""Whether the database is away, since when and why: said once, repeated now and then, and taken back afterwards."""

import time
from datetime import UTC, datetime

import asyncpg
import structlog

from sql.errors import Verdict, judge, sqlstate

log = structlog.get_logger("fleetwatt.writer")

REMIND_INTERVAL_S = 30.0
"""How often an outage that goes on is mentioned again."""


class Outage:
    """What the writer and the drain know of the database; what one of them learns the other need not find out."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._said_at_s: dict[Verdict, float] = {}
        self._ours: set[object] = set()
        self.is_lasting = False
        """Readings go to the spool, without another try, until something was stored again."""
        self.error: str | None = None
        """What the last try said; None where nothing is wrong."""
        self.last_sign_at_s = time.monotonic()
        """When something was last stored, or refused by the database itself."""
        self.last_commit_at_s = float("-inf")
        self.last_commit_at: datetime | None = None

    @property
    def is_ours(self) -> bool:
        """Whether anybody meets what waiting will not mend: the schema, a right or a password is wrong."""
        return bool(self._ours)

    def failed(self, error: Exception, source: object) -> None:
        """A try failed. `source` stands for who tried what, whose next success is the end of that fault."""
        now_s = time.monotonic()
        if isinstance(error, asyncpg.PostgresError):
            self.last_sign_at_s = now_s
        if self._since_s is None:
            self._since_s = now_s
        self.error = f"{sqlstate(error)}: {error}" if str(error) else type(error).__name__
        verdict = judge(error)
        if verdict is Verdict.OURS:
            self._ours.add(source)
        else:
            self._ours.discard(source)
        if now_s - self._said_at_s.get(verdict, float("-inf")) >= REMIND_INTERVAL_S:
            self._said_at_s[verdict] = now_s
            self._say(error)

    def succeeded(self, source: object) -> None:
        """A try worked."""
        self._ours.discard(source)

    def spooled(self) -> None:
        """A batch went to the spool, after a refusal or after silence."""
        if not self.is_lasting:
            self.is_lasting = True
            if self._since_s is None:
                self._since_s = time.monotonic()
                self.error = "the database did not store a batch in time"
            log.warning("the database stays away, readings go to the spool", error=self.error)

    def stored(self) -> None:
        """All of a batch was committed. The outage is over, unless somebody else still meets a fault of ours."""
        self.last_sign_at_s = self.last_commit_at_s = time.monotonic()
        self.last_commit_at = datetime.now(UTC)
        self.is_lasting = False
        if self._since_s is not None and not self._ours:
            log.info("database back", away_s=round(time.monotonic() - self._since_s, 1))
            self._since_s = self.error = None
            self._said_at_s.clear()

    def _say(self, error: Exception) -> None:
        event = {"error": str(error) or type(error).__name__, "sqlstate": sqlstate(error)}
        if judge(error) is Verdict.PASSES:
            log.warning("database away, readings are kept and tried again", **event)
        else:
            log.error("database refuses to store, the flow stands still until this is mended", **event)
