"""Delays that double up to a limit, with jitter, and start again when something worked."""

from itertools import pairwise

from daemon.backoff import Backoff

UPPER_ENDS_S = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15.0, 15.0, 15.0]


def test_each_delay_is_in_the_upper_half_of_what_doubles_up_to_the_longest() -> None:
    for _ in range(200):
        backoff = Backoff(0.2, 15.0)
        for upper_end_s in UPPER_ENDS_S:
            assert upper_end_s / 2 <= backoff.next_s() <= upper_end_s


def test_after_a_reset_the_first_delay_comes_again() -> None:
    backoff = Backoff(0.2, 15.0)
    for _ in range(20):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() <= 0.2
    assert 0.2 <= backoff.next_s() <= 0.4


def test_many_clients_do_not_come_back_in_step() -> None:
    delays_s = sorted(Backoff(1.0, 1.0).next_s() for _ in range(1000))
    assert delays_s[0] < 0.55
    assert delays_s[-1] > 0.95
    assert max(later - earlier for earlier, later in pairwise(delays_s)) < 0.05


def test_the_longest_delay_is_reached_and_stays_even_when_the_first_is_as_long() -> None:
    backoff = Backoff(5.0, 5.0)
    assert all(2.5 <= backoff.next_s() <= 5.0 for _ in range(10))
