"""Waiting longer after each failure, with jitter, so that many clients do not come back in step."""

import random


class Backoff:
    """Delays in seconds: doubling from `first_s` to `longest_s`, each drawn from its upper half."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def next_s(self) -> float:
        """The delay before the next try."""
        delay_s = self._next_s
        self._next_s = min(2 * delay_s, self._longest_s)
        return random.uniform(delay_s / 2, delay_s)  # noqa: S311 - spreads clients, keeps no secret

    def reset(self) -> None:
        """Start again from the first delay: something worked."""
        self._next_s = self._first_s
