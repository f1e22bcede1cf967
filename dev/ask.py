"""`python -m dev ask`: how long the sidecar takes for a vehicle and for the fleet, on what `dev history` has written.

No answer comes from the cache: each window of a vehicle ends a second before the last one did, and the fleet is asked
each time for another number of worst.
The time of a request runs from its first byte out to its last byte in, on a connection that is kept.
"""

import asyncio
import contextlib
import itertools
import random
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from sql.hours import DAY, hour_floor


class AskError(Exception):
    """The sidecar gave another answer than 200."""


async def ask(api_url: str, vehicles: int, days: int, requests: int, clients: list[int]) -> None:
    """Measure `requests` requests of `days` at each number of clients, and print the table."""
    paths = _vehicle_paths(vehicles, days * DAY)
    address = urlsplit(api_url)
    table = Table()
    for heading in ("asked for", "clients", "requests/s", "median, ms", "p99, ms", "greatest, ms"):
        table.add_column(heading, justify="right")
    await _client(address.hostname or "", address.port or 80, itertools.islice(paths, 50))  # connections, plans, pages
    for count in clients:
        share = [list(itertools.islice(paths, requests // count)) for _ in range(count)]
        started_at_s = time.perf_counter()
        taken = await asyncio.gather(*(_client(address.hostname or "", address.port or 80, iter(own)) for own in share))
        elapsed_s = time.perf_counter() - started_at_s
        table.add_row(
            f"a vehicle, {days * 24:,} h", *_figures([one_s for own in taken for one_s in own], count, elapsed_s)
        )
    for name, window, times in _fleet_windows():
        started_at_s = time.perf_counter()
        fleet = (f"/v1/analytics/fleet?{window}worst={worst}" for worst in range(times))
        taken_s = await _client(address.hostname or "", address.port or 80, fleet)
        table.add_row(name, *_figures(taken_s, 1, time.perf_counter() - started_at_s))
    Console().print(table)


def _vehicle_paths(vehicles: int, span: timedelta) -> Iterator[str]:
    """The vehicles in scattered order, again and again, over the span up to about now."""
    order = random.Random(1).sample(range(1, vehicles + 1), vehicles)  # noqa: S311 - repeatable is the point
    now = datetime.now(UTC)
    for age_s, number in enumerate(itertools.cycle(order)):
        yield f"/v1/analytics/performance/hv-{number:06d}?{_window(now - timedelta(seconds=age_s), span)}"


def _window(end: datetime, span: timedelta) -> str:
    return f"from={end - span:%Y-%m-%dT%H:%M:%SZ}&to={end:%Y-%m-%dT%H:%M:%SZ}"


def _fleet_windows() -> list[tuple[str, str, int]]:
    """What the fleet is asked for: in words, in the query, and how often."""
    end = hour_floor(datetime.now(UTC))
    return [("the fleet, 24 full hours", f"{_window(end, DAY)}&", 51), ("the fleet, the last 24 h", "", 5)]


def _figures(taken_s: list[float], clients: int, elapsed_s: float) -> list[str]:
    taken_ms = sorted(1000 * one_s for one_s in taken_s)
    return [
        str(clients),
        f"{len(taken_ms) / elapsed_s:,.0f}",
        f"{statistics.median(taken_ms):.1f}",
        f"{taken_ms[int(len(taken_ms) * 0.99)]:.1f}",
        f"{taken_ms[-1]:.1f}",
    ]


async def _client(host: str, port: int, paths: Iterator[str]) -> list[float]:
    """Ask for one path after the other; returns the seconds that each took."""
    reader, writer = await asyncio.open_connection(host, port)
    taken_s = []
    with contextlib.closing(writer):
        for path in paths:
            started_at_s = time.perf_counter()
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            taken_s.append(time.perf_counter() - started_at_s)
            if not head.startswith(b"HTTP/1.1 200"):
                raise AskError(f"{path}: {head.splitlines()[0].decode()}: {body.decode()}")
    return taken_s
