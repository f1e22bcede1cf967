"""Rows like those of the load by COPY into the same tables, without a broker: what PostgreSQL takes by itself.

The rows are made between the copies, so PostgreSQL waits for them now and then: by itself it would take more.
Two connections, one for each kind; a transaction is half a batch of the daemon's, as it is there.
"""

import asyncio
import io
import time
from datetime import UTC, datetime
from typing import Any

import asyncpg
import numpy as np
from msgspec import Struct

from dev.bench.worker import Reports, run
from sql.store import METER, VEHICLE, Kind

ROWS = 5_000
"""Of a kind in a transaction."""
_ID_BYTES = 8
_EPOCH_MS = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp() * 1000)
"""PostgreSQL counts from here."""
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"


class CopyOptions(Struct, frozen=True):
    """What to copy."""

    database_url: str
    devices: int
    with_live: bool
    """Whether the live state is kept, too."""


class CopyCounts(Struct):
    """Rows committed."""

    stored: int = 0


class Rows:
    """Rows of one kind, in rounds over its devices in an order that is drawn anew each time."""

    def __init__(self, kind: Kind, devices: int) -> None:
        self.kind = kind
        self._random = np.random.default_rng(1)
        self._devices = np.arange(devices)
        self._values = list(kind.columns[2:-1])
        self._row = _row_type(self._values)
        self._at = devices
        self._last_ms = 0

    def next(self) -> tuple[bytes, list[Any]]:
        """A batch, sorted by key, as COPY takes it and as the upsert of the live state takes it."""
        if self._at >= len(self._devices):
            self._random.shuffle(self._devices)
            self._at = 0
        devices = np.sort(self._devices[self._at : self._at + ROWS])
        self._at += ROWS
        self._last_ms = max(self._last_ms + 1, time.time_ns() // 1_000_000)
        ids = np.char.add(self.kind.name[0], np.char.zfill(devices.astype("U7"), 7))
        values = [self._random.uniform(0, 100, len(devices)) for _ in self._values]
        return self._packed(ids, values), self._arrays(ids, values)

    @property
    def _microseconds(self) -> int:
        return (self._last_ms - _EPOCH_MS) * 1000

    def _packed(self, ids: Any, values: list[Any]) -> bytes:
        rows = np.zeros(len(ids), self._row)
        rows["fields"] = len(self.kind.columns)
        rows["id"], rows["id_bytes"] = ids.astype("S8"), _ID_BYTES
        for name, numbers in zip(self._values, values, strict=True):
            rows[name] = numbers
        for name in ("ts", *self._values, "received_at"):
            rows[f"{name}_bytes"] = 8
        rows["ts"] = rows["received_at"] = self._microseconds
        return _HEADER + rows.tobytes() + _TRAILER

    def _arrays(self, ids: Any, values: list[Any]) -> list[Any]:
        times = [self._microseconds] * len(ids)
        return [ids.tolist(), times, *(numbers.tolist() for numbers in values), times]


def _row_type(values: list[str]) -> np.dtype[np.void]:
    """A row of the binary format: how many fields, then each with its length before it."""
    fields = [("fields", ">i2"), ("id_bytes", ">i4"), ("id", f"S{_ID_BYTES}"), ("ts_bytes", ">i4"), ("ts", ">i8")]
    for name in values:
        fields += [(f"{name}_bytes", ">i4"), (name, ">f8")]
    return np.dtype([*fields, ("received_at_bytes", ">i4"), ("received_at", ">i8")])


async def copy(options: CopyOptions, reports: Reports) -> None:
    """Copy until the bench says it is enough."""
    counts = CopyCounts()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for kind in (METER, VEHICLE):
            group.create_task(_copy(options, Rows(kind, options.devices // 2), counts, stop), name=kind.name)
        await reports.attend(lambda: counts)
        stop.set()
    reports.say(counts)


async def _copy(options: CopyOptions, rows: Rows, counts: CopyCounts, stop: asyncio.Event) -> None:
    connection = await asyncpg.connect(options.database_url)
    while not stop.is_set():
        packed, arrays = rows.next()
        async with connection.transaction():
            await connection.copy_to_table(
                rows.kind.history_table, source=io.BytesIO(packed), columns=rows.kind.columns, format="binary"
            )
            if options.with_live:
                await connection.execute(rows.kind.query("upsert_status"), *arrays)
        counts.stored += len(arrays[0])
    await connection.close()


if __name__ == "__main__":
    run(copy, CopyOptions)
