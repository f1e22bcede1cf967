"""The books: received = stored + duplicate + rejected + spooled + in flight, and a loss is seen."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from daemon.accounts import Accounts, Settlement
from daemon.readings import REASONS


def settlement(stored: int = 0, duplicate: int = 0, reasons: tuple[str, ...] = (), kind: str = "meter") -> Settlement:
    return Settlement(Counter({kind: stored}), Counter({kind: duplicate}), Counter(reasons))


def test_what_arrived_is_in_flight_until_it_is_settled() -> None:
    books = Accounts()
    books.receive(5)
    books.receive(2)
    assert (books.received, books.in_flight, books.unaccounted) == (7, 7, 0)
    books.settle(5, settlement(stored=5))
    assert (books.received, books.in_flight, books.unaccounted) == (7, 2, 0)


def test_what_became_of_readings_is_counted_by_kind_and_by_reason() -> None:
    books = Accounts()
    books.receive(14)
    books.settle(9, settlement(stored=4, duplicate=2, reasons=("too_old", "conflict", "too_old")))
    books.settle(5, settlement(stored=3, duplicate=2, kind="vehicle"))
    assert books.stored == {"meter": 4, "vehicle": 3}
    assert books.duplicate == {"meter": 2, "vehicle": 2}
    assert books.rejected == {"too_old": 2, "conflict": 1}
    assert (books.in_flight, books.unaccounted) == (0, 0)


def test_a_reading_that_nobody_counted_is_unaccounted() -> None:
    books = Accounts()
    books.receive(10)
    books.settle(10, settlement(stored=7, duplicate=1, reasons=("conflict",)))
    assert books.unaccounted == 1


def test_a_reading_that_was_counted_twice_is_unaccounted_as_well() -> None:
    books = Accounts()
    books.receive(10)
    books.settle(10, settlement(stored=10, duplicate=1))
    assert books.unaccounted == -1


def test_what_is_spooled_is_accounted_for_and_leaves_the_spool_as_what_it_became() -> None:
    books = Accounts()
    books.receive(5)
    books.spool(3)
    assert (books.in_flight, books.spooled, books.unaccounted) == (2, 3, 0)
    books.settle_spooled(3, settlement(stored=2, reasons=("conflict",)))
    assert (books.in_flight, books.spooled, books.unaccounted) == (2, 0, 0)
    assert (books.stored, books.rejected) == ({"meter": 2}, {"conflict": 1})


def test_what_an_earlier_process_left_in_the_spool_counts_as_received_and_is_told_apart() -> None:
    books = Accounts()
    books.recover(4)
    books.receive(1)
    assert (books.received, books.recovered, books.spooled, books.unaccounted) == (5, 4, 4, 0)


outcomes = st.tuples(
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.lists(st.sampled_from(REASONS), max_size=5).map(tuple),
    st.sampled_from(["meter", "vehicle"]),
)


@given(st.lists(outcomes, max_size=10))
def test_the_identity_holds_whenever_anybody_looks(batches: list[tuple[int, int, tuple[str, ...], str]]) -> None:
    books = Accounts()
    sizes = [stored + duplicate + len(reasons) for stored, duplicate, reasons, _ in batches]
    for size in sizes:
        books.receive(size)
        assert books.unaccounted == 0
    for size, batch in zip(sizes, batches, strict=True):
        if size % 2:
            books.spool(size)
            assert books.unaccounted == 0
            books.settle_spooled(size, settlement(*batch))
        else:
            books.settle(size, settlement(*batch))
        assert books.unaccounted == 0
    assert (books.received, books.in_flight, books.spooled) == (sum(sizes), 0, 0)
