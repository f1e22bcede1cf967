"""Rates and lags of the last minute. The clock is moved by hand."""

from collections import Counter
from datetime import UTC, datetime, timedelta

from daemon.accounts import Accounts, Settlement
from daemon.batch import Batch
from daemon.recent import READINGS_SAMPLED, Lag, Rates, Recent
from sql.store import METER
from tests.sessions import Nobody

NOW = datetime(2026, 3, 14, 15, tzinfo=UTC)


def batch(opened_at_s: float, *ages_s: float) -> Batch:
    """A batch of readings that are so many seconds old."""
    made = Batch(Nobody(), opened_at_s)
    made.contents.rows[METER] = [("m", NOW - timedelta(seconds=age_s), 0.0, 0.0, NOW, b"") for age_s in ages_s]
    return made


def test_rates_are_those_of_the_last_minute() -> None:
    books = Accounts()
    recent = Recent(books, 0.0)
    for second in range(1, 121):
        books.receive(10 if second <= 60 else 30)
        books.settle(10, Settlement(stored=Counter(meter=5), duplicate=Counter(meter=3), rejected=Counter(too_old=2)))
        recent.tick(float(second))
    assert recent.rates(120.0) == Rates(received=30.0, settled=10.0)


def test_rates_of_a_daemon_that_just_started_are_those_since_its_start() -> None:
    books = Accounts()
    recent = Recent(books, 100.0)
    books.receive(20)
    assert recent.rates(102.0) == Rates(received=10.0, settled=0.0)


def test_what_was_in_the_spool_at_the_start_did_not_come_in_the_last_minute() -> None:
    books = Accounts()
    recent = Recent(books, 0.0)
    books.recover(1000)
    assert recent.rates(10.0).received == 0.0


def test_the_lag_from_receipt_is_that_of_each_batch_s_oldest_reading() -> None:
    recent = Recent(Accounts(), 0.0)
    for number in range(100):
        recent.committed(batch(opened_at_s=10.0 - number / 100), 10.0, NOW)
    lag = recent.receipt_to_commit(10.0)
    assert lag is not None
    assert [round(value, 2) for value in (lag.p50, lag.p99, lag.max)] == [0.5, 0.99, 0.99]


def test_the_lag_of_devices_knows_late_ones_and_clocks_that_are_ahead() -> None:
    recent = Recent(Accounts(), 0.0)
    recent.committed(batch(9.0, -5.0, 2.0, 3600.0), 10.0, NOW)
    assert recent.device_to_commit(10.0) == Lag(p50=2.0, p99=3600.0, max=3600.0)


def test_a_lag_older_than_a_minute_is_forgotten() -> None:
    recent = Recent(Accounts(), 0.0)
    recent.committed(batch(9.0, 1.0), 10.0, NOW)
    assert recent.receipt_to_commit(70.0) is not None
    assert recent.receipt_to_commit(70.1) is None
    assert recent.device_to_commit(70.1) is None


def test_of_a_large_batch_a_few_readings_are_looked_at() -> None:
    recent = Recent(Accounts(), 0.0)
    recent.committed(batch(9.0, *range(10_000)), 10.0, NOW)
    assert len(recent._device_lags) <= READINGS_SAMPLED
    lag = recent.device_to_commit(10.0)
    assert lag is not None
    assert 4500 < lag.p50 < 5500
