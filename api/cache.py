"""Answers that are dear, kept for a while; those who ask for the same at the same time wait for one query."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable

from msgspec import Struct

ENTRIES_MAX = 4096
BYTES_MAX = 64 * 2**20
"""Of all answers: a year by the hour is 2 MB."""


class Entry(Struct, frozen=True):
    """The bytes of an answer, their tag, and until when they are good."""

    body: bytes
    etag: str
    expires_at_s: float


class Cache:
    """Bounded; the entry that was not asked for the longest goes first."""

    def __init__(self, ttl_s: float, told: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`told` hears of each request whether it was a `hit`, a `miss`, or `joined` another's query."""
        self._ttl_s = ttl_s
        self._told = told
        self._clock = clock
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._bytes = 0
        self._under_way: dict[Hashable, asyncio.Task[Entry]] = {}
        self.clears = 0
        """How often everything was forgotten: whoever keeps something elsewhere can tell that it is old."""

    def clear(self) -> None:
        """Forget everything, also what is being computed: it may have seen what was before."""
        self._entries.clear()
        self._bytes = 0
        self._under_way.clear()
        self.clears += 1

    async def get(self, key: Hashable, compute: Callable[[], Awaitable[bytes]]) -> Entry:
        """The entry, computed unless it is there. Errors of `compute` go to all who wait, and are not kept."""
        entry = self._entries.get(key)
        if entry and self._clock() < entry.expires_at_s:
            self._entries.move_to_end(key)
            self._told("hit")
            return entry
        task = self._under_way.get(key)
        self._told("joined" if task else "miss")
        if task is None:
            task = asyncio.create_task(self._compute(key, compute), name="analytics query")
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._done(key, done))
        # One of many who wait may go away; the others still want the answer.
        return await asyncio.shield(task)

    def seconds_left(self, entry: Entry) -> int:
        """For how many whole seconds the entry is good."""
        return max(0, int(entry.expires_at_s - self._clock()))

    async def _compute(self, key: Hashable, compute: Callable[[], Awaitable[bytes]]) -> Entry:
        body = await compute()
        etag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
        entry = Entry(body, etag, self._clock() + self._ttl_s)
        if self._under_way.get(key) is asyncio.current_task():
            self._keep(key, entry)
        return entry

    def _keep(self, key: Hashable, entry: Entry) -> None:
        if earlier := self._entries.pop(key, None):
            self._bytes -= len(earlier.body)
        self._entries[key] = entry
        self._bytes += len(entry.body)
        while len(self._entries) > ENTRIES_MAX or self._bytes > BYTES_MAX:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= len(oldest.body)

    def _done(self, key: Hashable, task: asyncio.Task[Entry]) -> None:
        if self._under_way.get(key) is task:
            del self._under_way[key]
        if not task.cancelled():
            task.exception()  # taken note of, also where everybody who waited has gone
