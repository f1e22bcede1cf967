"""`python -m dev run`: the whole house on one machine, with a simulated fleet, until Ctrl-C or for some seconds.

At the end it asks whether every reading that the fleet published is accounted for, in two ways that do not depend on
each other: the daemon's own books, and the rows that came into the database.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dev.books import Books, count_rows, read_books
from dev.feed import Feed
from dev.fleet import Fault, Fleet, Publication
from dev.processes import ProcessError
from dev.stack import Stack
from sql.links import LinkOverlapError, pair

BACKFILL = timedelta(hours=24)
GROUP = 400
"""Messages between two looks at whether to stop."""
LIVE_STEP_S = 0.25
LAST_MESSAGES_TIMEOUT_S = 10.0
SETTLE_TIMEOUT_S = 60.0
REPORT_INTERVAL_S = 10.0
"""How often the state is printed where the output is no terminal."""


class Memory(Struct):
    """What the fleet remembers between two starts: it then fills the gap only."""

    vehicles: int
    seed: int
    published_until: datetime


class Published(Struct):
    """What the broker has acknowledged to the fleet."""

    readings: int = 0
    repeated: int = 0
    """Of these, second copies that a faulty device sent."""


class Run:
    """One run of the stack with a fleet."""

    def __init__(self, folder: Path, vehicles: int, seconds: float, seed: int) -> None:
        self._folder = folder
        self._fleet = Fleet(vehicles, seed)
        self._memory_file = folder / "fleet.json"
        self._memory = Memory(vehicles, seed, datetime.now(UTC) - BACKFILL)
        self._seconds = seconds
        self._published = Published()
        self._last: Publication | None = None
        self._books = Books()
        self._earlier = Books()
        """Received and duplicate readings of the daemons of this run that have ended."""
        self._restarts = 0
        self._stop = asyncio.Event()
        self._console = Console()

    async def run(self) -> int:
        """Start, publish, stop; returns the exit code: 0 where everything is accounted for."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        self._say("starting PostgreSQL, Mosquitto, the daemon and the sidecar ...")
        with Stack(self._folder) as stack:
            rows_before = await count_rows(stack.database_url)
            watch = asyncio.create_task(self._watch(stack), name="watch")
            feed = Feed(stack.broker.url, "fleetwatt-fleet")
            try:
                await self._publish_until_stopped(stack, feed)
                accounted = await self._balance(stack, rows_before)
            finally:
                watch.cancel()
                await asyncio.wait([watch])
                await feed.close()
            self._say("stopping ...")
        return 0 if accounted else 1

    async def _publish_until_stopped(self, stack: Stack, feed: Feed) -> None:
        live_from = datetime.now(UTC)
        publishing = asyncio.create_task(self._publish(stack, feed, live_from), name="fleet")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        await asyncio.wait([publishing, stopping], return_when=asyncio.FIRST_COMPLETED)
        self._stop.set()
        stopping.cancel()
        await asyncio.wait([publishing], timeout=LAST_MESSAGES_TIMEOUT_S)
        publishing.cancel()  # does nothing unless the broker is away
        with contextlib.suppress(asyncio.CancelledError):
            await publishing

    async def _publish(self, stack: Stack, feed: Feed, live_from: datetime) -> None:
        await self._backfill(feed, self._remembered(live_from), live_from)
        await self._pair(stack)
        env_file = stack.write_env()
        self._introduce(stack, env_file)
        await self._live(feed, live_from)

    def _remembered(self, now: datetime) -> datetime:
        """Up to when this fleet has published already, at the most a day back."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            memory = msgspec.json.decode(self._memory_file.read_bytes(), type=Memory)
            if (memory.vehicles, memory.seed) == (self._memory.vehicles, self._memory.seed):
                return max(now - BACKFILL, memory.published_until)
        return now - BACKFILL

    async def _backfill(self, feed: Feed, start: datetime, end: datetime) -> None:
        if not self._fleet.devices:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        with Progress(*columns, TimeRemainingColumn(), console=self._console) as progress:
            hours = (end - start) / timedelta(hours=1)
            task = progress.add_task(f"the fleet sends its last {hours:.1f} hours", total=(end - start).total_seconds())
            for publications in _in_groups(self._fleet.backfill(start, end)):
                await self._send(feed, publications)
                progress.update(task, completed=(publications[-1].due - start).total_seconds())
                if self._stop.is_set():
                    return
            progress.update(task, completed=(end - start).total_seconds())
        self._remember(end)

    async def _pair(self, stack: Stack) -> None:
        """Link each vehicle with its meter, but leave alone what somebody has linked otherwise."""
        since = datetime.now(UTC) - BACKFILL - timedelta(hours=1)  # an array may hold what was kept for an hour
        connection = await asyncpg.connect(stack.database_url)
        try:
            for vehicle_id, meter_id in self._fleet.pairs():
                with contextlib.suppress(LinkOverlapError):
                    await pair(connection, vehicle_id, meter_id, since, None)
        finally:
            await connection.close()

    async def _live(self, feed: Feed, start: datetime) -> None:
        ends_at_s = time.monotonic() + self._seconds if self._seconds else float("inf")
        done = start
        while not self._stop.is_set() and time.monotonic() < ends_at_s:
            now = datetime.now(UTC)
            await self._send(feed, list(self._fleet.live(done, now)))
            done = now
            self._remember(done)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), LIVE_STEP_S)

    async def _send(self, feed: Feed, publications: list[Publication]) -> None:
        def acknowledged(count: int) -> None:
            for _ in range(count):
                publication = next(taken)
                self._published.readings += publication.readings
                # A copy is the same object again.
                self._published.repeated += publication.readings if publication is self._last else 0
                self._last = publication

        taken = iter(publications)
        await feed.send(((publication.topic, publication.payload) for publication in publications), acknowledged)

    def _remember(self, until: datetime) -> None:
        self._memory.published_until = until
        self._memory_file.write_bytes(msgspec.json.encode(self._memory))

    async def _watch(self, stack: Stack) -> None:
        """Read the books every second, show them, and start again what has ended."""
        reported_at_s = time.monotonic()
        while True:
            before, at_s = self._books, time.monotonic()
            await asyncio.sleep(1)
            with contextlib.suppress(OSError):
                self._books = await read_books(stack.metrics_url)
            await self._revive(stack)
            if self._console.is_terminal:
                self._console.print(self._line(before, time.monotonic() - at_s), end="\r", soft_wrap=True)
            elif time.monotonic() - reported_at_s >= REPORT_INTERVAL_S:
                reported_at_s = time.monotonic()
                self._say(self._line(before, time.monotonic() - at_s))

    async def _revive(self, stack: Stack) -> None:
        """Start again what has ended, as systemd would: kill what you like, and see it recover."""
        for child, start in stack.parts():
            if child.is_running:
                continue
            self._say(f"{child.name} ended (code {child.wait(1)}); starting it again")
            if child is stack.daemon:
                self._earlier.received += self._books.arrived
                self._earlier.duplicate += self._books.duplicate
                self._books = Books()
                self._restarts += 1
            try:
                await asyncio.to_thread(start)
            except ProcessError as error:  # it may need another part, which has ended as well
                self._say(str(error).splitlines()[0])

    def _line(self, before: Books, elapsed_s: float) -> str:
        books = self._books
        batches = books.batches - before.batches
        lag_s = (books.receipt_to_commit_s - before.receipt_to_commit_s) / batches if batches > 0 else 0.0
        rate = max(0, books.settled - before.settled) / elapsed_s
        return (
            f"published {self._published.readings:,}  stored {sum(books.stored.values()):,}  "
            f"duplicate {books.duplicate:,}  rejected {sum(books.rejected.values()):,}  "
            f"rate {rate:,.0f}/s  lag {lag_s * 1000:,.0f} ms  "
        )

    def _introduce(self, stack: Stack, env_file: Path) -> None:
        say, examples = self._say, self._examples()
        say(f"ready: look at {stack.api_url}")
        say(f"  {'the HTTP API':<18} {stack.api_url}/docs")
        for name, vehicle_id in examples.items():
            say(f"  {name:<18} curl {stack.api_url}/v1/analytics/performance/{vehicle_id}")
        if examples:
            say(f"  {'the whole fleet':<18} curl {stack.api_url}/v1/analytics/fleet")
        say(f"  {'the daemon':<18} curl -H 'Accept: text/plain' {stack.metrics_url}/status")
        say(f"  {'metrics':<18} curl {stack.metrics_url}/metrics")
        say(f"  {'rows':<18} psql {stack.database_url} -c 'TABLE vehicle_status LIMIT 5'")
        payload = '{"kwhConsumedAc":0.1,"voltage":230}'
        say(f"  {'publish':<18} mosquitto_pub -p {stack.broker.port} -q 1 -t meters/m1/reading -m '{payload}'")
        say(f"these addresses are in {env_file}, logs beside it")
        say(f"stops after {self._seconds:g} s" if self._seconds else "stop with Ctrl-C")

    def _examples(self) -> dict[str, str]:
        """A vehicle of each sort that a visitor wants to see."""
        by_fault = {fault: device_id for device_id, fault in reversed(self._fleet.faults().items())}
        vehicles = {
            "healthy vehicle": self._fleet.healthy(),
            "leaky charger": by_fault.get(Fault.LEAKY_CHARGER),
            "unlinked vehicle": by_fault.get(Fault.UNLINKED),
        }
        return {name: vehicle_id for name, vehicle_id in vehicles.items() if vehicle_id}

    async def _balance(self, stack: Stack, rows_before: dict[str, int]) -> bool:
        """Wait until what was published has arrived and is settled, print the table, and say whether it closes."""
        deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):
                self._books = await read_books(stack.metrics_url)
                if (
                    self._earlier.received + self._books.arrived >= self._published.readings
                    and not self._books.in_flight
                    and not self._books.spooled
                ):
                    break
            await asyncio.sleep(0.1)
        rows = await count_rows(stack.database_url)
        added = {table: rows[table] - rows_before[table] for table in rows}
        # A daemon that was killed takes its last count of duplicates with it; the second copies are known anyway.
        duplicate = max(self._earlier.duplicate + self._books.duplicate, self._published.repeated)
        missing = max(0, self._published.readings - duplicate - self._books.not_kept - sum(added.values()))
        unaccounted = missing + abs(self._books.unaccounted) + self._books.in_flight
        if not self._restarts:
            unaccounted += max(0, self._published.readings - self._books.arrived)
        self._console.print(self._table(added, unaccounted))
        return unaccounted == 0

    def _table(self, added: dict[str, int], unaccounted: int) -> Table:
        books, table = self._books, Table(title="where every reading went", title_justify="left")
        table.add_column("")
        table.add_column("readings", justify="right")
        table.add_column("rows added to the database", justify="right")

        def row(name: str, count: int, rows: str = "") -> None:
            table.add_row(name, f"{count:,}", rows)

        row("published by the fleet", self._published.readings)
        row("received by the daemon", self._earlier.received + books.arrived)
        table.add_section()
        for kind in ("meter", "vehicle"):
            row(f"stored, {kind}s", books.stored.get(kind, 0), f"{added[f'{kind}_reading']:,}")
        row("duplicate", books.duplicate)
        row("rejected", sum(books.rejected.values()), f"{added['rejection']:,}")
        for reason, count in sorted(books.rejected.items()):
            row(f"  {reason}", count)
        row("spooled", books.spooled)
        row("in flight", books.in_flight)
        table.add_section()
        row("unaccounted", unaccounted)
        if self._restarts:
            table.caption = (
                f"the daemon was started again {self._restarts} times; its counts are those of the last start"
            )
        return table

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def _in_groups(publications: Iterator[Publication]) -> Iterator[list[Publication]]:
    """Publications in groups small enough to stop between them."""
    group: list[Publication] = []
    for publication in publications:
        group.append(publication)
        if len(group) >= GROUP:
            yield group
            group = []
    if group:
        yield group
