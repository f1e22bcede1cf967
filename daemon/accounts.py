"""The books: every reading that arrived is stored, duplicate, rejected, spooled or in flight.

Rule: `received` grows when a reading arrives and `in_flight` with it; a batch is settled in one synchronous step that
takes its readings out of `in_flight` and adds what became of each. So the identity holds whenever anybody looks, and
`unaccounted` is zero unless a reading was lost from sight. The terms are counted apart: none is derived from another.
"""

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct, field

from sql.rejections import Rejection


class Settlement(Struct):
    """What became of the readings of one batch. Keys of `stored` and `duplicate` are the names of kinds."""

    stored: Counter[str] = field(default_factory=Counter)
    duplicate: Counter[str] = field(default_factory=Counter)
    rejections: list[Rejection] = field(default_factory=list)


class Accounts:
    """Counts of readings since the process started."""

    def __init__(self) -> None:
        self.received = 0
        self.in_flight = 0
        self.spooled = 0
        self.stored: Counter[str] = Counter()
        self.duplicate: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def receive(self, readings: int) -> None:
        """Readings arrived and are on their way."""
        self.received += readings
        self.in_flight += readings

    def settle(self, readings: int, settlement: Settlement) -> None:
        """A batch of that many readings ended as the settlement says."""
        self.in_flight -= readings
        self.stored.update(settlement.stored)
        self.duplicate.update(settlement.duplicate)
        self.rejected.update(_reasons(settlement.rejections))

    @property
    def unaccounted(self) -> int:
        """Zero, or something was lost from sight."""
        places = self.stored.total() + self.duplicate.total() + self.rejected.total() + self.spooled + self.in_flight
        return self.received - places


def _reasons(rejections: Iterable[Rejection]) -> Iterable[str]:
    return (rejection.reason for rejection in rejections)
