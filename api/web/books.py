"""The daemons' books, asked for over HTTP: where every reading is. The sidecar itself receives none."""

import asyncio
import urllib.request
from collections import Counter
from collections.abc import Sequence

import msgspec
from msgspec import Struct

TIMEOUT_S = 2.0


class _Readings(Struct, rename="camel"):
    received: int
    spooled: int
    in_flight: int
    unaccounted: int
    rejected_by_reason: dict[str, int]


class _Rates(Struct):
    received: float


class _Lag(Struct):
    p99: float


class Status(Struct, rename="camel"):
    """Of what a daemon tells at `/status`, the parts that are shown."""

    readings: _Readings
    rates_per_s: _Rates
    device_to_commit_s: _Lag | None
    faults: list[str]


class Books(Struct, frozen=True):
    """Those of all daemons, added up."""

    daemons: int
    """How many were asked."""
    away: list[str]
    """Those that did not answer, each with the reason."""
    received: int = 0
    unaccounted: int = 0
    spooled: int = 0
    in_flight: int = 0
    received_per_s: float = 0.0
    device_to_commit_s: float | None = None
    """The 99th percentile of the last minute, of the slowest daemon."""
    rejected: dict[str, int] = {}
    """By reason, since the daemons started."""
    faults: list[str] = []


async def read_books(urls: Sequence[str]) -> Books:
    """Ask each daemon; one that is away is named and not counted."""
    answers = await asyncio.gather(*(asyncio.to_thread(_ask, url) for url in urls), return_exceptions=True)
    found = [answer for answer in answers if isinstance(answer, Status)]
    rejected: Counter[str] = Counter()
    for status in found:
        rejected.update(status.readings.rejected_by_reason)
    lags_s = [status.device_to_commit_s.p99 for status in found if status.device_to_commit_s]
    return Books(
        daemons=len(urls),
        away=[f"{url}: {answer}" for url, answer in zip(urls, answers, strict=True) if isinstance(answer, Exception)],
        received=sum(status.readings.received for status in found),
        unaccounted=sum(status.readings.unaccounted for status in found),
        spooled=sum(status.readings.spooled for status in found),
        in_flight=sum(status.readings.in_flight for status in found),
        received_per_s=sum(status.rates_per_s.received for status in found),
        device_to_commit_s=max(lags_s, default=None),
        rejected=dict(rejected),
        faults=[fault for status in found for fault in status.faults],
    )


def _ask(url: str) -> Status:
    request = urllib.request.Request(f"{url}/status", headers={"Accept": "application/json"})  # noqa: S310 - a setting
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - http(s), checked by the settings
        return msgspec.json.decode(answer.read(), type=Status)
