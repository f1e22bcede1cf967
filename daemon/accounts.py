"""The books: every reading that arrived is stored, duplicate, rejected, spooled or in flight.

Rule: `received` grows when a reading arrives and `in_flight` with it; a batch is settled in one synchronous step that
takes its readings out of `in_flight` and adds what became of each. So the identity holds whenever anybody looks, and
`unaccounted` is zero unless a reading was lost from sight. The terms are counted apart: none is derived from another.

What an earlier process left in the spool counts as received by this one: it took the readings over.
"""

from collections import Counter

from msgspec import Struct, field


class Settlement(Struct):
    """What became of the readings of one batch, by kind and, where rejected, by reason."""

    stored: Counter[str] = field(default_factory=Counter)
    duplicate: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)


class Accounts:
    """Counts of readings since the process started."""

    def __init__(self) -> None:
        self.received = 0
        self.in_flight = 0
        self.spooled = 0
        self.recovered = 0
        """Of those received, the ones that were in the spool at the start."""
        self.stored: Counter[str] = Counter()
        self.duplicate: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def receive(self, readings: int) -> None:
        """Readings arrived and are on their way."""
        self.received += readings
        self.in_flight += readings

    def recover(self, readings: int) -> None:
        """Readings were found in the spool."""
        self.received += readings
        self.recovered += readings
        self.spooled += readings

    def spool(self, readings: int) -> None:
        """A batch of that many readings went from memory to the spool."""
        self.in_flight -= readings
        self.spooled += readings

    def settle(self, readings: int, settlement: Settlement) -> None:
        """A batch of that many readings ended as the settlement says."""
        self.in_flight -= readings
        self._settle(settlement)

    def settle_spooled(self, readings: int, settlement: Settlement) -> None:
        """That many readings left the spool and ended as the settlement says."""
        self.spooled -= readings
        self._settle(settlement)

    @property
    def unaccounted(self) -> int:
        """Zero, or something was lost from sight."""
        places = self.stored.total() + self.duplicate.total() + self.rejected.total() + self.spooled + self.in_flight
        return self.received - places

    def _settle(self, settlement: Settlement) -> None:
        self.stored.update(settlement.stored)
        self.duplicate.update(settlement.duplicate)
        self.rejected.update(settlement.rejected)
