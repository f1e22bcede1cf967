"""Rows the other way round: as the arrays that `unnest` takes, and as the bytes that COPY takes.

To turn a datetime into what the server has, whole microseconds since 2000, is most of what a row costs. So it is done
once, for both.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain, compress, repeat
from operator import ne
from struct import Struct
from typing import Any, TypeAlias

Columns: TypeAlias = list[Any]
"""The list of devices, that of times, and so on, without payloads; times in microseconds since 2000."""

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER = b"\xff\xff"
_COPY_ROW = Struct(">hi")
"""How a row begins: its columns, and the bytes of the device's id, which is the first of them."""


def columns_of(rows: Sequence[tuple[Any, ...]]) -> Columns:
    """The columns of at least one row."""
    devices, times, *values, received_at, _ = zip(*rows, strict=True)
    return [devices, _microseconds(times), *values, _microseconds(received_at)]


def newest_of(columns: Columns) -> Columns:
    """Those of each device's last row, of columns that are sorted by device and time."""
    devices = columns[0]
    is_last = [*map(ne, devices, devices[1:]), True]
    return [list(compress(column, is_last)) for column in columns]


def pack(columns: Columns) -> bytes:
    """The rows as COPY's binary format has them: each value behind its length."""
    devices, times, *values, received_at = columns
    ids = [device.encode() for device in devices]
    heads = map(_COPY_ROW.pack, repeat(len(columns)), map(len, ids))
    # All but the id are 8 bytes long.
    numbers = chain.from_iterable((repeat(8), column) for column in (times, *values, received_at))
    rests = map(Struct(f">iq{'id' * len(values)}iq").pack, *numbers)
    return b"".join([_COPY_HEADER, *chain.from_iterable(zip(heads, ids, rests, strict=True)), _COPY_TRAILER])


def _microseconds(times: Iterable[datetime]) -> list[int]:
    return [
        (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds for since in [t - _EPOCH for t in times]
    ]
