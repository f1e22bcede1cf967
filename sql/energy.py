"""What the readings of a counter count: the rules of docs/energy.md, without a database.

Rule: what a reading counts is decided by its neighbours, whatever window is asked for. So windows that adjoin add up,
and an hour that was counted once stays right until a reading comes that reaches it. The neighbours are

- up to three readings before it, at most a day old, and up to three behind it, at most an hour later: they tell a
  glitch or a spike, which is ignored;
- the last reading before it that was not ignored, at most 31 days old, which it is compared with;
- those since the beginning of the UTC hour before its own, back to the last reset: a counter that has dipped counts
  again only above the highest of them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from enum import IntFlag
from operator import le, sub
from typing import Literal, TypeAlias

from msgspec import Struct

Counter: TypeAlias = Literal["register", "session"]

RESET_BELOW = 0.9
"""A counter that falls below this share of its last value was reset; a smaller fall is a dip."""
SESSION_BACK_MAX = 1.1
"""Up to this multiple of the level before, a session counter is back from a glitch; above, a session has begun."""
NEIGHBOURS = 3
BEFORE_S = 86400.0
BEHIND_S = 3600.0
BASE_S_MAX = 31 * 86400.0
"""What a longer silence comes to is not counted."""
HOUR_S = 3600.0
ROUNDING_KWH = 1e-9


class Oddity(IntFlag):
    """How a reading of a counter can be odd."""

    NONE = 0
    IMPOSSIBLE_STEP = 1
    RESET = 2
    DIP = 4
    GLITCH = 8


class Series(Struct, frozen=True):
    """Readings of a counter with what each counts; all of the same length, in the order of time."""

    times_s: Sequence[float]
    """Unix seconds."""
    kwh: Sequence[float]
    """Counted by the reading, not shown by it."""
    oddities: Sequence[Oddity]

    def between(self, start_s: float, end_s: float) -> slice:
        """The place of the readings in [start_s, end_s)."""
        return slice(bisect_left(self.times_s, start_s), bisect_left(self.times_s, end_s))


def count(counter: Counter, times_s: Sequence[float], levels: Sequence[float], power_max_kw: float) -> Series:
    """What each of the readings counts. `levels` are what the counter showed, in kWh; times ascend.

    The first reading, also after a long silence, has nothing to be compared with and counts nothing.
    """
    if _only_rises(times_s, levels, power_max_kw):
        return Series(times_s, [0.0, *map(sub, levels[1:], levels)], [Oddity.NONE] * len(levels))
    ignored = [_ignored(counter, times_s, levels, n, power_max_kw) for n in range(len(levels))]
    return _count(times_s, levels, ignored, power_max_kw)


def _only_rises(times_s: Sequence[float], levels: Sequence[float], power_max_kw: float) -> bool:
    """Whether the counter did nothing but rise, and never fast: nearly all do."""
    if len(levels) < 2:
        return True
    if not all(map(le, levels, levels[1:])):
        return False
    if times_s[-1] - times_s[0] > BASE_S_MAX and max(map(sub, times_s[1:], times_s)) > BASE_S_MAX:
        return False
    least_hours = min(map(sub, times_s[1:], times_s)) / HOUR_S
    return bool(max(map(sub, levels[1:], levels)) <= power_max_kw * least_hours)


def _ignored(
    counter: Counter, times_s: Sequence[float], levels: Sequence[float], n: int, power_max_kw: float
) -> Oddity:
    """What is back at once: a fall that the former level follows, or an impossible rise that a fall follows."""
    at_s, level = times_s[n], levels[n]
    before = [levels[m] for m in range(max(0, n - NEIGHBOURS), n) if times_s[m] >= at_s - BEFORE_S]
    behind = [levels[m] for m in range(n + 1, min(n + 1 + NEIGHBOURS, len(levels))) if times_s[m] <= at_s + BEHIND_S]
    if not before or not behind:
        return Oddity.NONE
    highest = max(before)
    if counter == "register":
        is_glitch = level < RESET_BELOW * highest <= max(behind)
    else:
        is_glitch = level < RESET_BELOW * before[-1] and before[-1] <= behind[0] <= SESSION_BACK_MAX * before[-1]
    if is_glitch:
        return Oddity.GLITCH
    possible_kwh = power_max_kw * (at_s - times_s[n - 1]) / HOUR_S + ROUNDING_KWH
    return Oddity.IMPOSSIBLE_STEP if level - highest > possible_kwh and behind[0] < level else Oddity.NONE


def _count(times_s: Sequence[float], levels: Sequence[float], ignored: Sequence[Oddity], power_max_kw: float) -> Series:
    kwh, oddities = [0.0] * len(levels), list(ignored)
    previous: float | None = None
    previous_s = 0.0
    highest = _Highest()
    for n, (at_s, level) in enumerate(zip(times_s, levels, strict=True)):
        if ignored[n]:
            continue
        if previous is None or at_s - previous_s > BASE_S_MAX:
            highest.begin(at_s, level)
        else:
            step = 0.0
            if level < RESET_BELOW * previous:
                oddities[n] |= Oddity.RESET
                step = level
                highest.begin(at_s, level)
            else:
                if level < previous:
                    oddities[n] |= Oddity.DIP
                step = max(0.0, level - max(previous, highest.of_late(at_s)))
                highest.add(at_s, level)
            if step > power_max_kw * (at_s - previous_s) / HOUR_S + ROUNDING_KWH:
                oddities[n] |= Oddity.IMPOSSIBLE_STEP
            else:
                kwh[n] = step
        previous_s, previous = at_s, level
    return Series(times_s, kwh, oddities)


class _Highest:
    """The highest level since the last reset, in this UTC hour and in the one before."""

    def __init__(self) -> None:
        self._hour = 0
        self._level = self._level_before = 0.0

    def begin(self, at_s: float, level: float) -> None:
        self._hour, self._level, self._level_before = int(at_s // HOUR_S), level, 0.0

    def add(self, at_s: float, level: float) -> None:
        self._turn(at_s)
        self._level = max(self._level, level)

    def of_late(self, at_s: float) -> float:
        self._turn(at_s)
        return max(self._level, self._level_before)

    def _turn(self, at_s: float) -> None:
        hour = int(at_s // HOUR_S)
        if hour != self._hour:
            self._level_before = self._level if hour == self._hour + 1 else 0.0
            self._hour, self._level = hour, 0.0
