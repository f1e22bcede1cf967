"""What Prometheus reads: names with one prefix, and books that close in every scrape."""

import random
from collections import Counter

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from daemon.accounts import Accounts, Settlement
from daemon.batch import Batches
from daemon.metrics import Metrics
from daemon.readings import REASONS
from dev.books import parse_books
from tests.sessions import Nobody


def scrape(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"fleetwatt_{name}", labels)


@pytest.fixture
def accounts() -> Accounts:
    return Accounts()


@pytest.fixture
def metrics(accounts: Accounts) -> Metrics:
    return Metrics(accounts, lambda: 1.5)


def test_every_name_has_the_prefix_of_fleetwatt_or_of_the_process(metrics: Metrics) -> None:
    names = {family.name for family in text_string_to_metric_families(scrape(metrics))}
    assert names
    assert {name for name in names if not name.startswith(("fleetwatt_", "process_", "python_"))} == set()


def test_every_metric_says_what_it_is(metrics: Metrics) -> None:
    families = list(text_string_to_metric_families(scrape(metrics)))
    assert [family.name for family in families if not family.documentation] == []


def test_the_books_close_in_every_scrape(metrics: Metrics, accounts: Accounts) -> None:
    chance = random.Random(3)
    for _ in range(200):
        if chance.random() < 0.6 or accounts.in_flight < 10:
            accounts.receive(chance.randrange(50))
        else:
            settlement = Settlement()
            readings = chance.randrange(10)
            for _ in range(readings):
                kind = chance.choice(["meter", "vehicle"])
                place = chance.choice([settlement.stored, settlement.duplicate, None])
                if place is None:
                    settlement.rejected[chance.choice(REASONS)] += 1
                else:
                    place[kind] += 1
            accounts.settle(readings, settlement)

        books = parse_books(scrape(metrics))
        assert books.received == books.settled + books.spooled + books.in_flight
        assert books.unaccounted == 0
    assert books.settled > 100


def test_a_reading_that_is_lost_from_sight_is_seen(metrics: Metrics, accounts: Accounts) -> None:
    accounts.receive(10)
    settlement = Settlement()
    settlement.stored["meter"] = 7
    accounts.settle(9, settlement)
    assert value(metrics, "readings_unaccounted") == 2


def test_what_became_of_readings_is_told_by_kind_and_by_reason(metrics: Metrics, accounts: Accounts) -> None:
    accounts.receive(10)
    settlement = Settlement(rejected=Counter(conflict=2, too_old=1))
    settlement.stored.update(meter=3, vehicle=2)
    settlement.duplicate.update(meter=1)
    accounts.settle(9, settlement)

    assert value(metrics, "readings_received_total") == 10
    assert value(metrics, "readings_stored_total", kind="meter") == 3
    assert value(metrics, "readings_stored_total", kind="vehicle") == 2
    assert value(metrics, "readings_duplicate_total", kind="meter") == 1
    assert value(metrics, "readings_rejected_total", reason="conflict") == 2
    assert value(metrics, "readings_rejected_total", reason="too_old") == 1
    assert value(metrics, "readings_in_flight") == 1
    assert value(metrics, "readings_spooled") == 0


def test_a_batch_tells_its_size_and_its_times(metrics: Metrics) -> None:
    batch = Batches(1000, 1.0, lambda: 10.0).open(Nobody())
    batch.readings = 120
    metrics.batch_settled(batch, started_at_s=10.5, committed_at_s=12.5)
    assert value(metrics, "batch_readings_sum") == 120
    assert value(metrics, "batch_store_seconds_sum") == 2
    assert value(metrics, "receipt_to_commit_seconds_sum") == 2.5
    assert value(metrics, "oldest_in_flight_seconds") == 1.5
    metrics.watch_commits(lambda: 1.75e9)
    assert value(metrics, "last_commit_timestamp_seconds") == 1.75e9


def test_the_spool_tells_its_size_and_its_age(metrics: Metrics) -> None:
    assert value(metrics, "spool_bytes") == 0
    metrics.watch_spool(lambda: 4096, lambda: 12.5)
    assert value(metrics, "spool_bytes") == 4096
    assert value(metrics, "spool_oldest_seconds") == 12.5


def test_rejections_of_a_flood_are_counted_by_reason(metrics: Metrics) -> None:
    metrics.rejections_not_kept("too_old", 3)
    assert value(metrics, "rejections_not_kept_total", reason="too_old") == 3


def test_errors_are_counted_by_their_sqlstate(metrics: Metrics) -> None:
    metrics.slow_batch("meter", "23505")
    metrics.database_error("57P01")
    metrics.database_error("57P01")
    assert value(metrics, "slow_batches_total", kind="meter", sqlstate="23505") == 1
    assert value(metrics, "database_errors_total", sqlstate="57P01") == 2


def test_two_daemons_in_one_process_keep_their_counts_apart() -> None:
    books = Accounts(), Accounts()
    first, second = (Metrics(accounts, lambda: 0.0) for accounts in books)
    books[0].receive(1)
    assert value(first, "readings_received_total") == 1
    assert value(second, "readings_received_total") == 0
