"""`/status`: the books and the state of everything, as JSON for programs and as text for people.

Its headline is how many readings are unaccounted for: 0, or there is a bug.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct
from structlog.typing import EventDict

from daemon.accounts import Accounts
from daemon.batch import Batches
from daemon.outage import Outage
from daemon.recent import Lag, Rates, Recent
from daemon.spool import Spool
from daemon.subscriber import Subscriber
from sql import __version__


class Problem(Struct, frozen=True, rename="camel"):
    """A warning or an error of the log."""

    at: datetime
    text: str


class LastProblem:
    """A processor of structlog that remembers the last warning or error."""

    def __init__(self) -> None:
        self.problem: Problem | None = None

    def __call__(self, _: Any, level: str, event: EventDict) -> EventDict:
        """Pass an event on, remembering it where it is a problem."""
        if level in ("warning", "error", "critical"):
            error = event.get("error")
            self.problem = Problem(datetime.now(UTC), f"{event['event']}: {error}" if error else str(event["event"]))
        return event


class Readings(Struct, frozen=True, rename="camel"):
    """The books: received = stored + duplicate + rejected + spooled + inFlight + unaccounted."""

    received: int
    stored: int
    duplicate: int
    rejected: int
    spooled: int
    in_flight: int
    unaccounted: int
    recovered: int
    stored_by_kind: dict[str, int]
    rejected_by_reason: dict[str, int]


class SpoolState(Struct, frozen=True, rename="camel"):
    """What is in the spool."""

    folder: str
    readings: int
    unreadable: int
    bytes: int
    bytes_max: int
    oldest_s: float


class Status(Struct, frozen=True, rename="camel"):
    """Everything at one moment. Durations are in seconds; what is null has not happened or is switched off."""

    headline: str
    identity: str
    version: str
    started_at: datetime
    ready: bool
    faults: list[str]
    broker: str
    subscribed: bool
    readings: Readings
    rates_per_s: Rates
    receipt_to_commit_s: Lag | None
    device_to_commit_s: Lag | None
    oldest_unacknowledged_s: float
    last_commit_at: datetime | None
    spool: SpoolState | None
    last_problem: Problem | None


class StatusBoard:
    """Puts a status together from the parts of the daemon."""

    def __init__(
        self,
        accounts: Accounts,
        recent: Recent,
        batches: Batches,
        outage: Outage,
        subscriber: Subscriber,
        spool: Spool | None,
        last_problem: LastProblem,
        faults: Callable[[], Awaitable[list[str]]],
    ) -> None:
        self._accounts = accounts
        self._recent = recent
        self._batches = batches
        self._outage = outage
        self._subscriber = subscriber
        self._spool = spool
        self._last_problem = last_problem
        self._faults = faults
        self._started_at = datetime.now(UTC)

    async def read(self) -> Status:
        """The status now."""
        faults = await self._faults()
        now_s = time.monotonic()
        books = readings_of(self._accounts)
        return Status(
            headline=f"{books.unaccounted:,} unaccounted",
            identity=identity(books),
            version=__version__,
            started_at=self._started_at,
            ready=not faults,
            faults=faults,
            broker=self._subscriber.broker_address,
            subscribed=self._subscriber.subscribed,
            readings=books,
            rates_per_s=self._recent.rates(now_s),
            receipt_to_commit_s=self._recent.receipt_to_commit(now_s),
            device_to_commit_s=self._recent.device_to_commit(now_s),
            oldest_unacknowledged_s=self._batches.oldest_age_s(),
            last_commit_at=self._outage.last_commit_at,
            spool=_spool_state(self._spool),
            last_problem=self._last_problem.problem,
        )

    def line(self) -> str:
        """The state in one line, for systemd."""
        books, rates = readings_of(self._accounts), self._recent.rates(time.monotonic())
        broker = self._subscriber
        state = "subscribed" if broker.subscribed else f"waiting for the broker at {broker.broker_address}"
        if self._outage.error:
            state += f"; waiting for the database: {self._outage.error}"
        spooled = f", {books.spooled:,} in the spool" if books.spooled else ""
        return f"{state}; {rates.settled:,.0f} readings/s; {books.unaccounted:,} unaccounted{spooled}"


def readings_of(accounts: Accounts) -> Readings:
    """The books, in one synchronous step."""
    return Readings(
        received=accounts.received,
        stored=accounts.stored.total(),
        duplicate=accounts.duplicate.total(),
        rejected=accounts.rejected.total(),
        spooled=accounts.spooled,
        in_flight=accounts.in_flight,
        unaccounted=accounts.unaccounted,
        recovered=accounts.recovered,
        stored_by_kind=dict(accounts.stored),
        rejected_by_reason=dict(accounts.rejected),
    )


def identity(books: Readings) -> str:
    """The books as the sum that they are."""
    return (
        f"received {books.received:,} = stored {books.stored:,} + duplicate {books.duplicate:,} + "
        f"rejected {books.rejected:,} + spooled {books.spooled:,} + in flight {books.in_flight:,}"
        + (f" + unaccounted {books.unaccounted:,}" if books.unaccounted else "")
    )


def as_text(status: Status, now: datetime) -> str:
    """A status for people."""
    lines = {
        "state": "ready" if status.ready else "not ready: " + "; ".join(status.faults),
        "since": f"{_moment(status.started_at, now)}, version {status.version}",
        "broker": f"{status.broker}, {'subscribed' if status.subscribed else 'not subscribed'}",
        "rate": f"{status.rates_per_s.received:,.1f} received and {status.rates_per_s.settled:,.1f} settled a second",
        "receipt to commit": _lag_text(status.receipt_to_commit_s),
        "device to commit": _lag_text(status.device_to_commit_s),
        "oldest waiting": f"{status.oldest_unacknowledged_s:,.1f} s",
        "last commit": _moment(status.last_commit_at, now) if status.last_commit_at else "none yet",
        "spool": _spool_text(status.spool),
        "rejected": _counts_text(status.readings.rejected_by_reason),
        "last problem": _problem_text(status.last_problem, now),
    }
    table = "".join(f"{name:<18} {text}\n" for name, text in lines.items())
    return f"{status.headline}\n{status.identity}\n\n{table}"


def _spool_state(spool: Spool | None) -> SpoolState | None:
    if spool is None:
        return None
    return SpoolState(
        spool.folder, spool.readings, spool.unreadable, spool.bytes, spool.bytes_max, round(spool.oldest_age_s(), 3)
    )


def _spool_text(spool: SpoolState | None) -> str:
    if spool is None:
        return "off (SPOOL_DIR is not set)"
    size = f"{spool.bytes / 2**20:,.1f} of {spool.bytes_max / 2**20:,.0f} MiB"
    text = f"{spool.readings:,} readings, {size} in {spool.folder}"
    if spool.unreadable:
        text += f", {spool.unreadable:,} of them damaged"
    return text + (f", the oldest for {spool.oldest_s:,.0f} s" if spool.oldest_s else "")


def _lag_text(lag: Lag | None) -> str:
    if lag is None:
        return "nothing was committed in the last minute"
    return f"median {lag.p50:,.3f} s, 99 % within {lag.p99:,.3f} s, at most {lag.max:,.3f} s"


def _counts_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items())) or "none"


def _problem_text(problem: Problem | None, now: datetime) -> str:
    return f"{_moment(problem.at, now)}: {problem.text}" if problem else "none"


def _moment(at: datetime, now: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC ({(now - at).total_seconds():,.0f} s ago)"
