"""A flood of bad messages must not fill the database: rejections are kept up to a rate, and counted beyond it.

Rule: a bucket of tokens, refilled at the rate that the settings allow. A rejection takes a token for each 4 KiB of
payload that it begins. The last tenth of the bucket is for devices of which few were kept in this minute, so that one
device gone mad does not hide what is wrong with the others. `keep` takes the tokens, so it is called once for a
rejection and not for each try to store it.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from sql.rejections import Rejection

log = structlog.get_logger("fleetwatt.rejections")

BURST_TOKENS = 100_000
RESERVE_TOKENS = BURST_TOKENS // 10
TOKEN_BYTES = 4096
QUIET_BELOW = 10
"""A device of which fewer were kept in this minute may take of the reserve."""
QUIET_PERIOD_S = 60.0
SLOTS = 1 << 16
"""Counters of devices. Two that share one share its count, which is the price of a memory that does not grow."""
REMIND_INTERVAL_S = 30.0


class Allowance:
    """Decides which rejections are kept. `clock` gives monotonic seconds; a rate of 0 keeps all."""

    def __init__(self, rejections_per_s_max: float, clock: Callable[[], float]) -> None:
        self._per_s = rejections_per_s_max
        self._clock = clock
        self._tokens = float(BURST_TOKENS)
        self._filled_at_s = self._period_began_s = clock()
        self._kept_of = bytearray(SLOTS)

    def keep(self, rejections: Sequence[Rejection]) -> list[Rejection]:
        """Those to keep, in their order."""
        if not self._per_s:
            return list(rejections)
        self._refill()
        return [rejection for rejection in rejections if self._takes(rejection)]

    def _refill(self) -> None:
        now_s = self._clock()
        self._tokens = min(BURST_TOKENS, self._tokens + (now_s - self._filled_at_s) * self._per_s)
        self._filled_at_s = now_s
        if now_s - self._period_began_s >= QUIET_PERIOD_S:
            self._period_began_s = now_s
            self._kept_of = bytearray(SLOTS)

    def _takes(self, rejection: Rejection) -> bool:
        slot = hash(_device_part(rejection.topic)) % SLOTS
        is_quiet = self._kept_of[slot] < QUIET_BELOW
        left = self._tokens - _cost(rejection)
        if left < (0 if is_quiet else RESERVE_TOKENS):
            return False
        self._tokens = left
        self._kept_of[slot] += is_quiet  # counts no further than it has to
        return True


class Flood:
    """An allowance that tells of what it did not keep: each to `count` (reason, how many), now and then to the log."""

    def __init__(
        self,
        rejections_per_s_max: float,
        count: Callable[[str, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allowance = Allowance(rejections_per_s_max, clock)
        self._count = count
        self._clock = clock
        self._untold: Counter[str] = Counter()
        self._told_at_s = -REMIND_INTERVAL_S

    def keep(self, rejections: Sequence[Rejection]) -> list[Rejection]:
        """Those to keep, in their order; the others are counted."""
        kept = self._allowance.keep(rejections)
        if len(kept) < len(rejections):
            lost = _reasons(rejections) - _reasons(kept)
            self._untold += lost
            for reason, number in lost.items():
                self._count(reason, number)
        self._tell()
        return kept

    def _tell(self) -> None:
        if self._untold and self._clock() - self._told_at_s >= REMIND_INTERVAL_S:
            log.warning(
                "a flood of bad messages: not all rejections are kept (REJECTIONS_PER_S_MAX)",
                not_kept=dict(self._untold),
            )
            self._untold.clear()
            self._told_at_s = self._clock()


def _cost(rejection: Rejection) -> int:
    return max(1, -(-(len(rejection.topic) + len(rejection.payload)) // TOKEN_BYTES))


def _device_part(topic: str) -> str:
    """The first two levels: a device may publish below its own only, on as many topics as it likes."""
    return "/".join(topic.split("/", 2)[:2])


def _reasons(rejections: Sequence[Rejection]) -> Counter[str]:
    return Counter(rejection.reason for rejection in rejections)
