"""Looking at the daemon's books from outside: its metrics, and the rows in the database."""

import asyncio
import urllib.request
from collections import defaultdict
from collections.abc import Mapping

import asyncpg
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families


class Books(Struct):
    """The daemon's counts at one moment."""

    received: int = 0
    stored: Mapping[str, int] = {}
    duplicate: int = 0
    rejected: Mapping[str, int] = {}
    not_kept: int = 0
    """Of those rejected, counted only: there was a flood of them."""
    spooled: int = 0
    recovered: int = 0
    """Of those received, in the spool at the daemon's start."""
    in_flight: int = 0
    unaccounted: int = 0
    batches: int = 0
    slow_batches: int = 0
    receipt_to_commit_s: float = 0.0
    """Summed over the batches."""

    @property
    def arrived(self) -> int:
        """Readings that came from the broker."""
        return self.received - self.recovered

    @property
    def settled(self) -> int:
        """Readings that are stored, duplicate or rejected."""
        return sum(self.stored.values()) + self.duplicate + sum(self.rejected.values())


async def read_books(metrics_url: str) -> Books:
    """Ask the daemon; raises OSError where it does not answer."""
    return parse_books(await asyncio.to_thread(get, f"{metrics_url}/metrics"))


def parse_books(text: str) -> Books:
    """Find the books in Prometheus' text."""
    samples: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name.removeprefix("fleetwatt_")]["".join(sample.labels.values())] = sample.value

    def total(name: str) -> int:
        return int(sum(samples[name].values()))

    def by_label(name: str) -> dict[str, int]:
        return {label: int(value) for label, value in samples[name].items()}

    return Books(
        received=total("readings_received_total"),
        stored=by_label("readings_stored_total"),
        duplicate=total("readings_duplicate_total"),
        rejected=by_label("readings_rejected_total"),
        not_kept=total("rejections_not_kept_total"),
        spooled=total("readings_spooled"),
        recovered=total("readings_recovered"),
        in_flight=total("readings_in_flight"),
        unaccounted=total("readings_unaccounted"),
        slow_batches=total("slow_batches_total"),
        batches=total("receipt_to_commit_seconds_count"),
        receipt_to_commit_s=sum(samples["receipt_to_commit_seconds_sum"].values()),
    )


async def count_rows(database_url: str) -> dict[str, int]:
    """Rows of the history tables and of the rejections."""
    connection = await asyncpg.connect(database_url)
    try:
        return {
            table: await connection.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608 - names of ours
            for table in ("meter_reading", "vehicle_reading", "rejection")
        }
    finally:
        await connection.close()


def get(url: str) -> str:
    """What a process of ours answers; raises OSError where it does not."""
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - http, to our own daemon
        return str(answer.read().decode())
