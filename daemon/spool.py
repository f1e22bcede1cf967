"""The spool: batches that wait on this machine's disk while the database stays away. One SQLite file.

Rules:
- What `put` took is on the disk when it returns (fsync), whole or not at all, and may be acknowledged.
- Oldest first. `remove` comes after the commit in the database. A crash between the two brings the same readings once
  more, and the table knows its own rows.
- A spool that is full (`SPOOL_BYTES_MAX`), or whose disk does not take more, raises SpoolError. Nothing of that batch
  is in it then, and the broker keeps what is not acknowledged.
- A body that cannot be read back stays in the file, is counted as spooled, and is passed over, loudly.
- A file that turns out to be damaged raises DamagedError, which nobody catches: the daemon ends, and its next start
  saves what can be read (`daemon.spool_file`).

SQLite is called from one thread of its own, since fsync blocks.
"""

import asyncio
import contextlib
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog
from msgspec import Struct

from daemon.batch import BYTES_MAX, Batch, Contents
from daemon.spool_file import FILE_NAME, DamagedError, files_of, give_room_back, is_damage, open_or_salvage
from sql.rejections import Rejection
from sql.store import METER, VEHICLE

T = TypeVar("T")

log = structlog.get_logger("fleetwatt.spool")


class SpoolError(Exception):
    """The spool did not take a batch."""


class Body(Struct, array_like=True):
    """Contents as they are written: MessagePack, compressed by zlib, whose checksum comes with it."""

    meters: list[tuple[str, datetime, float, float, datetime, bytes]]
    vehicles: list[tuple[str, datetime, float, float, float, datetime, bytes]]
    rejections: list[Rejection]
    not_kept: dict[str, int]


class Spooled(Struct):
    """The oldest batches of a spool, taken together."""

    contents: Contents
    readings: int
    last_id: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Body).decode


def encode(contents: Contents) -> bytes:
    """The body of a batch."""
    rows = contents.rows
    body = Body(rows.get(METER, []), rows.get(VEHICLE, []), contents.rejections, contents.not_kept)
    return zlib.compress(_encode(body), 1)


def add_decoded(body: bytes, contents: Contents) -> None:
    """Add what is in a body; raises ValueError where the bytes are not those that were written."""
    try:
        found = _decode(zlib.decompress(body))
    except (zlib.error, msgspec.MsgspecError, TypeError) as error:
        raise ValueError(f"the body cannot be read: {error}") from error
    for kind, rows in ((METER, found.meters), (VEHICLE, found.vehicles)):
        if rows:
            contents.rows.setdefault(kind, []).extend(rows)
    contents.rejections += found.rejections
    contents.not_kept += Counter(found.not_kept)


class Spool:
    """The file in a folder, open and locked until `close`."""

    def __init__(self, folder: str, bytes_max: int) -> None:
        """Open it, or make it; raises SettingsError or SpoolFileError where it cannot be used."""
        self.folder = folder
        self.bytes_max = bytes_max
        self._path = Path(folder) / FILE_NAME
        self._connection = open_or_salvage(self._path, bytes_max)
        self._inode = self._path.stat().st_ino
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._taken_through = 0
        self._has_leftovers = False
        self._filled = asyncio.Event()
        self._filled.set()
        (self.readings,) = self._connection.execute("SELECT coalesce(sum(readings), 0) FROM batch").fetchone()
        """How many are in it, the unreadable ones included."""
        (self.unreadable,) = self._connection.execute(
            "SELECT coalesce(sum(readings), 0) FROM batch WHERE is_damaged"
        ).fetchone()
        """Of these, the readings of bodies that cannot be read back."""
        self.bytes = 0
        """What the file and its journal take on the disk."""
        self._oldest_at_s: float | None = None
        self._look()

    async def put(self, batch: Batch) -> None:
        """Keep a batch; it is on the disk when this returns. Raises SpoolError where it does not fit or stay."""
        await self._call(lambda: self._put(batch))
        self._filled.set()

    async def wait(self) -> None:
        """Wait until there is something to take."""
        await self._filled.wait()

    async def oldest(self, readings_max: int) -> Spooled | None:
        """The oldest batches, together of at most `readings_max` readings, or one; None where there is none."""
        return await self._call(lambda: self._oldest(readings_max))

    async def remove(self, spooled: Spooled) -> None:
        """Forget what `oldest` gave. Raises SpoolError where the file still has it: it may come again after a start."""
        self._taken_through = spooled.last_id
        self.readings -= spooled.readings
        self._has_leftovers = True
        await self._call(self._remove)

    def oldest_age_s(self) -> float:
        """For how long the oldest batch has been here; 0 where there is none to take."""
        return max(0.0, time.time() - self._oldest_at_s) if self._oldest_at_s is not None else 0.0

    def close(self) -> None:
        """Close the file; what is under way ends first."""
        self._thread.shutdown()
        self._connection.close()

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            if is_damage(error):
                raise DamagedError(f"{self._path} is damaged: {error}") from error
            raise SpoolError(f"{error}; it has {self.bytes} bytes and SPOOL_BYTES_MAX is {self.bytes_max}") from error

    # What follows runs in the thread.

    def _put(self, batch: Batch) -> None:
        self._check_place()
        if self._has_leftovers:
            self._remove()
        with self._connection:
            self._connection.execute(
                "INSERT INTO batch (spooled_at, readings, bytes, body) VALUES (?, ?, ?, ?)",
                (time.time(), batch.readings, batch.bytes, encode(batch.contents)),
            )
        self.readings += batch.readings
        self._look()

    def _oldest(self, readings_max: int) -> Spooled | None:
        found, bytes_found = Spooled(Contents(), 0, self._taken_through), 0
        damaged: list[tuple[int, int, str]] = []
        cursor = self._connection.execute(
            "SELECT id, readings, bytes, body FROM batch WHERE id > ? AND NOT is_damaged ORDER BY id",
            (self._taken_through,),
        )
        for number, readings, size, body in cursor:
            bytes_found += size
            if found.readings and (found.readings + readings > readings_max or bytes_found > BYTES_MAX):
                break
            try:
                add_decoded(body, found.contents)
            except ValueError as error:
                damaged.append((number, readings, str(error)))
            else:
                found.readings += readings
                found.last_id = number
        cursor.close()
        for number, readings, fault in damaged:
            self._mark_damaged(number, readings, fault)
        if not found.readings:
            self._filled.clear()  # in the thread: whoever puts after this look sets it after this
            return None
        return found

    def _mark_damaged(self, number: int, readings: int, fault: str) -> None:
        with self._connection:
            self._connection.execute("UPDATE batch SET is_damaged = true WHERE id = ?", (number,))
        self.unreadable += readings
        log.error(
            "a batch in the spool is damaged; it stays there and is passed over",
            spool=str(self._path),
            batch=number,
            readings=readings,
            error=fault,
        )

    def _remove(self) -> None:
        with self._connection:
            self._connection.execute("DELETE FROM batch WHERE id <= ? AND NOT is_damaged", (self._taken_through,))
        self._has_leftovers = False
        if self.readings == self.unreadable:  # empty: the disk gets its room back
            give_room_back(self._connection)
        self._look()

    def _look(self) -> None:
        """Find out size and age. Never raises: what was committed before is committed."""
        with contextlib.suppress(sqlite3.Error, OSError):
            self.bytes = sum(path.stat().st_size for path in files_of(self._path))
            found = self._connection.execute(
                "SELECT spooled_at FROM batch WHERE id > ? AND NOT is_damaged ORDER BY id LIMIT 1",
                (self._taken_through,),
            ).fetchone()
            self._oldest_at_s = found[0] if found else None

    def _check_place(self) -> None:
        """A file that was removed still takes what is written, and is gone with the process."""
        if not self._path.exists() or self._path.stat().st_ino != self._inode:
            raise SpoolError(f"{self._path} was removed or replaced under the running daemon; restart the daemon")
