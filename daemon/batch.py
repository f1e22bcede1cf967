"""Batches: what was received together, is stored together and is acknowledged together.

Rule: a batch is handed to the writer as soon as the writer asks and the batch is full or its oldest reading is
`flush_interval_s` old. So it grows while the writer is busy: low load gives low latency, high load large batches.
A batch takes whole deliveries of one MQTT session, so that it is acknowledged on the connection it came from.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct, field

from daemon.readings import Decoded
from sql.flood import Flood
from sql.rejections import Rejection
from sql.store import Kind, Row

BYTES_MAX = 16 * 1024 * 1024
"""Of topics and payload, from which on a batch is full whatever it has in rows: a message may have a megabyte."""


class Acknowledger(Protocol):
    """The session that delivered a batch."""

    def acknowledge(self, packet_ids: list[int]) -> None:
        """Acknowledge packets, in this order; does nothing once the connection is gone."""


class Contents(Struct):
    """What is to be stored and kept of some readings."""

    rows: dict[Kind, list[Row]] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    not_kept: Counter[str] = field(default_factory=Counter)
    """Reason -> rejected readings of a flood, which are counted and not kept."""

    def reject(self, rejections: Sequence[Rejection], flood: Flood) -> None:
        """Take rejections: those that the flood's limit lets through are kept, the others counted."""
        kept = flood.keep(rejections)
        self.rejections += kept
        if len(kept) < len(rejections):
            self.not_kept += count_reasons(rejections) - count_reasons(kept)


class Batch:
    """Readings of one session, in the order of their arrival."""

    __slots__ = ("bytes", "contents", "opened_at_s", "packet_ids", "readings", "session")

    def __init__(self, session: Acknowledger, opened_at_s: float) -> None:
        self.session = session
        self.opened_at_s = opened_at_s
        self.packet_ids: list[int] = []
        self.contents = Contents()
        self.readings = 0
        self.bytes = 0

    def add(self, decoded: Decoded, message_bytes: int, packet_id: int | None) -> None:
        """Take the rows that one message was decoded to, and count; a message of QoS 0 has no packet id."""
        if decoded.kind is not None and decoded.rows:
            self.contents.rows.setdefault(decoded.kind, []).extend(decoded.rows)
        self.readings += len(decoded.rows) + len(decoded.rejections)
        self.bytes += message_bytes
        if packet_id is not None:
            self.packet_ids.append(packet_id)

    def is_full(self, rows_max: int) -> bool:
        """Whether it should be written rather than grow."""
        return self.readings >= rows_max or self.bytes >= BYTES_MAX


def count_reasons(rejections: Sequence[Rejection]) -> Counter[str]:
    """Reason -> how many."""
    return Counter(rejection.reason for rejection in rejections)


class Batches:
    """The line of batches between intake and writer. `clock` gives monotonic seconds."""

    def __init__(self, rows_max: int, flush_interval_s: float, clock: Callable[[], float]) -> None:
        self._rows_max = rows_max
        self._flush_interval_s = flush_interval_s
        self._clock = clock
        self._waiting: deque[Batch] = deque()
        self._being_written: Batch | None = None
        self._changed = asyncio.Event()
        self._closed = False

    def open(self, session: Acknowledger) -> Batch:
        """The batch that the next delivery of this session goes into."""
        if self._waiting:
            last = self._waiting[-1]
            if last.session is session and not last.is_full(self._rows_max):
                return last
        batch = Batch(session, self._clock())
        self._waiting.append(batch)
        return batch

    def delivered(self) -> None:
        """Tell the writer that a delivery is in."""
        self._changed.set()

    def close(self) -> None:
        """No more deliveries: what is waiting is handed out at once, and then None."""
        self._closed = True
        self._changed.set()

    async def next(self) -> Batch | None:
        """The next batch to write, when it is due; None after the last one. Ends the batch handed out before."""
        self._being_written = None
        while (wait_s := self._due_in_s()) is None or wait_s > 0:
            if self._closed and not self._waiting:
                return None
            self._changed.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
        self._being_written = self._waiting.popleft()
        return self._being_written

    def oldest_age_s(self) -> float:
        """For how long the oldest reading that is not settled has been waiting; 0 where there is none."""
        oldest = self._being_written or (self._waiting[0] if self._waiting else None)
        return self._clock() - oldest.opened_at_s if oldest else 0.0

    @property
    def bytes(self) -> int:
        """Bytes of messages in all batches that are not settled."""
        in_hand = self._being_written.bytes if self._being_written else 0
        return in_hand + sum(batch.bytes for batch in self._waiting)

    def _due_in_s(self) -> float | None:
        """Seconds until the first waiting batch is due; None where nothing is waiting."""
        if not self._waiting:
            return None
        first = self._waiting[0]
        if self._closed or len(self._waiting) > 1 or first.is_full(self._rows_max):
            return 0
        return max(0.0, first.opened_at_s + self._flush_interval_s - self._clock())
