"""What is known of a database that is away: whose fault it is, since when, and when it is over."""

import asyncpg
import pytest
from structlog.testing import capture_logs

from daemon.outage import Outage

PASSING = asyncpg.PostgresError.new({"C": "57P01", "M": "terminating connection"})
OURS = asyncpg.PostgresError.new({"C": "42P01", "M": "no such table"})


@pytest.fixture
def outage() -> Outage:
    return Outage()


def test_an_outage_begins_with_a_failure_and_ends_with_a_commit(outage: Outage) -> None:
    with capture_logs() as logs:
        outage.failed(PASSING, "meters")
        outage.failed(PASSING, "meters")
        outage.stored()
        outage.stored()
    assert [entry["event"] for entry in logs] == [
        "database away, readings are kept and tried again",
        "database back",
    ]
    assert outage.error is None


def test_it_is_ours_as_long_as_anybody_meets_what_is_ours(outage: Outage) -> None:
    outage.failed(OURS, "meters")
    outage.failed(PASSING, "vehicles")
    assert outage.is_ours
    outage.succeeded("vehicles")
    assert outage.is_ours
    outage.succeeded("meters")
    assert not outage.is_ours


def test_it_is_ours_no_more_when_the_same_try_fails_for_another_reason(outage: Outage) -> None:
    outage.failed(OURS, "meters")
    outage.failed(PASSING, "meters")
    assert not outage.is_ours


def test_what_one_stores_does_not_end_what_is_ours_for_another(outage: Outage) -> None:
    with capture_logs() as logs:
        outage.failed(OURS, "the drain's meters")
        for _ in range(5):
            outage.stored()
        outage.failed(OURS, "the drain's meters")
    assert [entry["event"] for entry in logs] == [
        "database refuses to store, the flow stands still until this is mended"
    ]
    assert outage.error == "42P01: no such table"


def test_silence_is_an_outage_too(outage: Outage) -> None:
    with capture_logs() as logs:
        outage.spooled()
        outage.spooled()
        outage.stored()
    assert [entry["event"] for entry in logs] == ["the database stays away, readings go to the spool", "database back"]
    assert not outage.is_lasting


def test_only_what_the_server_itself_says_is_a_sign_of_it(outage: Outage) -> None:
    outage.last_sign_at_s = 0.0
    outage.failed(TimeoutError(), "meters")
    outage.spooled()
    assert outage.last_sign_at_s == 0.0
    outage.failed(PASSING, "meters")
    assert outage.last_sign_at_s > 0.0
