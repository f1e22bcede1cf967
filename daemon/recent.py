"""The last minute: how fast readings came and were stored, and how late."""

from collections import deque
from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from daemon.accounts import Accounts
from daemon.batch import Batch

WINDOW_S = 60.0
SAMPLES_MAX = 20_000
"""Of each lag. Bounds memory; at a hundred batches a second it is still the whole minute of batches."""
READINGS_SAMPLED = 25
"""Of a batch and kind, for the devices' lag."""


class Lag(Struct, frozen=True, rename="camel"):
    """Seconds: the median, the 99th percentile and the greatest."""

    p50: float
    p99: float
    max: float


class Rates(Struct, frozen=True, rename="camel"):
    """Readings a second."""

    received: float
    settled: float


class Recent:
    """Takes samples, and forgets those that are older than a minute. Times are monotonic seconds unless said."""

    def __init__(self, accounts: Accounts, now_s: float) -> None:
        self._accounts = accounts
        self._counts: deque[tuple[float, int, int]] = deque([(now_s, 0, 0)])
        self._receipt_lags: deque[tuple[float, float]] = deque(maxlen=SAMPLES_MAX)
        self._device_lags: deque[tuple[float, float]] = deque(maxlen=SAMPLES_MAX)

    def tick(self, now_s: float) -> None:
        """Remember the counts; called every second or so."""
        self._counts.append((now_s, *self._count()))
        while len(self._counts) > 2 and self._counts[1][0] <= now_s - WINDOW_S:
            self._counts.popleft()

    def committed(self, batch: Batch, now_s: float, now: datetime) -> None:
        """A batch was committed now."""
        self._receipt_lags.append((now_s, now_s - batch.opened_at_s))
        for rows in batch.contents.rows.values():
            for row in rows[:: len(rows) // READINGS_SAMPLED + 1]:
                self._device_lags.append((now_s, (now - row[1]).total_seconds()))

    def rates(self, now_s: float) -> Rates:
        """Since the last tick that is a minute old, or since the start."""
        then_s, received, settled = self._counts[0]
        received_now, settled_now = self._count()
        elapsed_s = max(now_s - then_s, 0.001)
        return Rates((received_now - received) / elapsed_s, (settled_now - settled) / elapsed_s)

    def receipt_to_commit(self, now_s: float) -> Lag | None:
        """Of the oldest reading of each batch; None where nothing was committed in the last minute."""
        return _lag(self._receipt_lags, now_s)

    def device_to_commit(self, now_s: float) -> Lag | None:
        """From the time that a reading gives to its commit, by a sample; below zero where a clock is ahead."""
        return _lag(self._device_lags, now_s)

    def _count(self) -> tuple[int, int]:
        books = self._accounts
        settled = books.stored.total() + books.duplicate.total() + books.rejected.total()
        return books.received - books.recovered, settled


def _lag(samples: deque[tuple[float, float]], now_s: float) -> Lag | None:
    while samples and samples[0][0] < now_s - WINDOW_S:
        samples.popleft()
    lags = sorted(lag_s for _, lag_s in samples)
    return Lag(_quantile(lags, 0.5), _quantile(lags, 0.99), lags[-1]) if lags else None


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
