"""Readings for the tests of energy: a time to start from, and a way into the history that is quick to write down."""

import itertools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg

from sql.partitions import Days
from sql.store import METER, Kind, copy, sort

START = datetime(2024, 5, 2, tzinfo=UTC)
Point = tuple[float, float]  # minutes from START, kWh
numbers = itertools.count(1)


def minute(number: float) -> datetime:
    return START + timedelta(minutes=number)


def series(values: Sequence[float], first: int = 0, every: int = 1) -> list[Point]:
    return [(first + n * every, kwh) for n, kwh in enumerate(values)]


async def store(
    database: asyncpg.Connection, kind: Kind, device_id: str, points: Iterable[Point], battery_temp: float = 20.0
) -> None:
    values = (230.0,) if kind is METER else (battery_temp,)
    received_at = minute(next(numbers) / 1000)
    rows = [
        (device_id, minute(at), *(() if kind is METER else (50.0,)), kwh, *values, received_at, b"")
        for at, kwh in points
    ]
    await copy(database, kind, sort(rows), Days())
