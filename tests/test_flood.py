"""A flood of bad messages: kept up to a rate, counted beyond it, and fair to the devices that are not part of it."""

from collections import Counter
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from sql.flood import BURST_TOKENS, QUIET_BELOW, RESERVE_TOKENS, TOKEN_BYTES, Allowance, Flood
from sql.rejections import Rejection

AT = datetime(2024, 5, 1, 12, tzinfo=UTC)
ORDINARY = BURST_TOKENS - RESERVE_TOKENS


class Clock:
    """Monotonic seconds that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def bad(count: int, device: str = "mad", reason: str = "out_of_range", payload_bytes: int = 2) -> list[Rejection]:
    return [Rejection(AT, f"meters/{device}/reading", reason, f"{n}", b"x" * payload_bytes) for n in range(count)]


def test_what_stays_below_the_rate_is_all_kept_for_ever(clock: Clock) -> None:
    allowance = Allowance(20, clock)
    for _ in range(10_000):
        given = bad(20)
        assert allowance.keep(given) == given
        clock.now_s += 1


def test_a_burst_is_kept_and_then_only_the_rate(clock: Clock) -> None:
    allowance = Allowance(20, clock)
    assert len(allowance.keep(bad(BURST_TOKENS))) == ORDINARY
    assert allowance.keep(bad(1000)) == []
    clock.now_s += 10
    assert len(allowance.keep(bad(1000))) == 10 * 20


def test_those_that_are_kept_are_the_first_in_their_order(clock: Clock) -> None:
    allowance = Allowance(20, clock)
    allowance.keep(bad(ORDINARY - 3))
    given = bad(10)
    assert allowance.keep(given) == given[:3]


def test_a_rate_of_zero_keeps_all(clock: Clock) -> None:
    allowance = Allowance(0, clock)
    assert len(allowance.keep(bad(3 * BURST_TOKENS))) == 3 * BURST_TOKENS


@pytest.mark.parametrize(
    ("message_bytes", "tokens"),
    [(0, 1), (1, 1), (TOKEN_BYTES, 1), (TOKEN_BYTES + 1, 2), (1024 * 1024, 256)],
)
def test_large_messages_cost_more(clock: Clock, message_bytes: int, tokens: int) -> None:
    allowance = Allowance(20, clock)
    allowance.keep(bad(ORDINARY - 2 * tokens))
    assert len(allowance.keep(bad(5, payload_bytes=max(0, message_bytes - len("meters/mad/reading"))))) == 2


def test_a_bucket_that_rests_does_not_overflow(clock: Clock) -> None:
    allowance = Allowance(20, clock)
    clock.now_s += 10_000_000
    assert len(allowance.keep(bad(2 * BURST_TOKENS))) == ORDINARY


def test_a_device_gone_mad_does_not_hide_the_others(clock: Clock) -> None:
    allowance = Allowance(20, clock)
    for _ in range(100):
        clock.now_s += 0.01
        allowance.keep(bad(5000))
    assert allowance.keep(bad(50)) == []
    assert len(allowance.keep(bad(50, "quiet"))) == QUIET_BELOW
    assert allowance.keep(bad(50, "quiet")) == []


def test_many_topics_of_one_device_are_one_device(clock: Clock) -> None:
    allowance = Allowance(20, clock)
    allowance.keep(bad(BURST_TOKENS, "other"))
    many = [Rejection(AT, f"meters/mad/{n}", "bad_topic", "", b"") for n in range(1000)]
    assert len(allowance.keep(many)) == QUIET_BELOW


def test_each_minute_the_quiet_ones_are_found_anew(clock: Clock) -> None:
    allowance = Allowance(0.001, clock)
    allowance.keep(bad(BURST_TOKENS))
    assert len(allowance.keep(bad(20, "quiet"))) == QUIET_BELOW
    clock.now_s += 59
    assert allowance.keep(bad(20, "quiet")) == []
    clock.now_s += 1
    assert len(allowance.keep(bad(20, "quiet"))) == QUIET_BELOW


def test_the_reserve_ends_too(clock: Clock) -> None:
    allowance = Allowance(20, clock)
    allowance.keep(bad(ORDINARY))
    given = [each for n in range(RESERVE_TOKENS) for each in bad(2, f"m{n}")]
    assert len(allowance.keep(given)) == RESERVE_TOKENS
    assert allowance.keep(bad(1, "one-more")) == []


def test_what_is_not_kept_is_counted_by_reason_and_said_now_and_then(clock: Clock) -> None:
    counted: Counter[str] = Counter()

    def count(reason: str, number: int) -> None:
        counted[reason] += number

    flood = Flood(20, count, clock)
    with capture_logs() as logs:
        assert flood.keep(bad(5)) == bad(5)
        assert logs == []
        flood.keep(bad(ORDINARY))
        assert counted == {"out_of_range": 5}
        flood.keep(bad(7) + bad(3, reason="too_old"))
        clock.now_s += 29
        flood.keep(bad(600))
        assert len(logs) == 1
        clock.now_s += 1
        flood.keep([])
    assert counted == {"out_of_range": 5 + 7 + 20, "too_old": 3}
    assert [(line["log_level"], line["not_kept"]) for line in logs] == [
        ("warning", {"out_of_range": 5}),
        ("warning", {"out_of_range": 7 + 20, "too_old": 3}),
    ]
