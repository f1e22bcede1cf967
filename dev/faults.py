"""`python -m dev faults`: every fault of the matrix under load, and a table of what came of it.

A row passes when all that the broker acknowledged to the publisher is in the table, once and whole, and every bad
message among the rejections; when the live state is the newest; when the daemon's books closed at every look and say
what the table says; when its memory stayed below the bound; when it recovered by itself; and when the fault was felt.
"""

import asyncio
import contextlib
import os
import platform
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import asyncpg
import psutil
from msgspec import Struct, field
from rich.console import Console
from rich.table import Table

from dev.books import Books
from dev.fault_rows import BEYOND, MATRIX, Row
from dev.harm import UNANSWERED, FaultError
from dev.house import House, eventually
from dev.load import PER_S, Findings, check, count_missing
from dev.processes import ProcessError
from dev.stage import DATABASE, MEBIBYTE, CannotMountError, Server, Stage, set_stage

BEFORE_S = 2.0
AFTER_S = 1.0
"""For how long the load goes on before a fault, and after the recovery from it."""
MEMORY_MAX_MIB = 300.0
LOOK_INTERVAL_S = 0.25


class Result(Struct):
    """What came of a row."""

    name: str
    findings: Findings = field(default_factory=lambda: Findings(0))
    duplicates: int = 0
    unaccounted: int = 0
    spooled_max: int = 0
    recovered_s: float | None = None
    """From the end of the fault until a reading that was published after it was stored."""
    caught_up_s: float | None = None
    """From the end of the fault until nothing that was acknowledged half a second before was missing."""
    memory_mib: float = 0.0
    took_s: float = 0.0
    complaints: list[str] = []
    skipped: str = ""

    @property
    def verdict(self) -> str:
        """One or a few words."""
        return f"not run: {self.skipped}" if self.skipped else "; ".join(self.complaints) or "ok"


class Watch:
    """Looks at the daemon all the while: its memory, and whether its books close."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._books: dict[int, Books] = {}
        self.memory_bytes = 0
        self.unaccounted = 0
        self.spooled_max = 0

    async def __aenter__(self) -> "Watch":
        self._tasks = [
            asyncio.create_task(self._again_and_again(look), name="watch") for look in (self._memory, self._accounts)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def daemons(self) -> int:
        """How many processes there were."""
        return len(self._books)

    @property
    def duplicates(self) -> int:
        """Repeated readings, as each process last said."""
        return sum(books.duplicate for books in self._books.values())

    async def _again_and_again(self, look: Callable[[int], Awaitable[None]]) -> None:
        while True:
            with contextlib.suppress(OSError, ProcessError, psutil.NoSuchProcess):  # it is away
                await look(self._house.daemon.pid)
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def _memory(self, pid: int) -> None:
        self.memory_bytes = max(self.memory_bytes, psutil.Process(pid).memory_info().rss)

    async def _accounts(self, pid: int) -> None:
        books = await asyncio.to_thread(self._house.books)
        self._books[pid] = books
        self.unaccounted = max(self.unaccounted, abs(books.unaccounted))
        self.spooled_max = max(self.spooled_max, books.spooled)


async def perform(row: Row, folder: Path, server: Server) -> Result:
    """Let one fault happen, in a folder that is not there yet and a fresh database."""
    started_s = time.monotonic()
    result = Result(row.name)
    try:
        async with set_stage(folder, server, row.settings, row.broker_settings, row.disk_for) as stage:
            await _play(row, stage, result)
    except CannotMountError as error:
        result.skipped = str(error)
    except (FaultError, ProcessError, TimeoutError, asyncpg.PostgresError, OSError) as error:
        result.complaints.append(f"{type(error).__name__}: {error}")
    result.took_s = time.monotonic() - started_s
    return result


async def _play(row: Row, stage: Stage, result: Result) -> None:
    async with Watch(stage.house) as watch:
        async with stage.load:
            await stage.load.more(int(BEFORE_S * PER_S))
            said_before = len(_log(stage.house))
            async with row.fault(stage):
                await asyncio.sleep(row.lasts_s)
            await _recover(row, stage, result)
            await stage.load.more(int(AFTER_S * PER_S))
        result.findings = await check(stage.load, stage.database_url, row.patience_s)
        books = await _last_books(stage.house)
        said = _log(stage.house)[said_before:] + stage.house.metrics()
    result.duplicates = watch.duplicates
    result.spooled_max = max(watch.spooled_max, stage.spooled_max)
    result.unaccounted = max(watch.unaccounted, abs(books.unaccounted))
    result.memory_mib = watch.memory_bytes / MEBIBYTE
    result.complaints += [*result.findings.complaints(), *_complaints(row, result, books, watch.daemons)]
    if row.felt_as not in said:
        result.complaints.append(f"the daemon's log and metrics say nothing of {row.felt_as!r}")


def _complaints(row: Row, result: Result, books: Books, daemons: int) -> Iterable[str]:
    if result.unaccounted:
        yield f"{result.unaccounted:,} readings unaccounted for"
    if books.spooled or books.in_flight:
        yield f"{books.spooled:,} still spooled, {books.in_flight:,} still in flight"
    stored = sum(books.stored.values())
    if daemons == 1 and stored != result.findings.stored:
        yield f"the daemon counts {stored:,} stored"
    if result.memory_mib > MEMORY_MAX_MIB:
        yield f"more than {MEMORY_MAX_MIB:.0f} MiB of memory"
    if row.spools and not result.spooled_max:
        yield "nothing was spooled"


async def _recover(row: Row, stage: Stage, result: Result) -> None:
    """Measure from the end of the fault, which is now."""
    ended_s = time.monotonic()
    load = stage.load
    probe = next(n for n in range(load.begun, load.begun + 3) if load.messages.is_reading(n))

    async def stored() -> bool:
        with contextlib.suppress(*UNANSWERED):
            return await _is_stored(stage, probe)
        return False

    async def caught_up() -> bool:
        acknowledged = load.acknowledged
        await asyncio.sleep(0.5)
        with contextlib.suppress(*UNANSWERED):
            return not await count_missing(load, acknowledged, stage.database_url)
        return False

    try:
        await eventually(stored, row.patience_s)
        result.recovered_s = time.monotonic() - ended_s
        await eventually(caught_up, row.patience_s)
        result.caught_up_s = time.monotonic() - ended_s
    except TimeoutError:
        result.complaints.append(f"not recovered within {row.patience_s:.0f} s")


async def _is_stored(stage: Stage, number: int) -> bool:
    reading = stage.load.messages.reading(number)
    statement = f"SELECT EXISTS (SELECT FROM {reading.kind}_reading WHERE {reading.kind}_id = $1 AND ts = $2)"  # noqa: S608 - names of ours
    return bool(await stage.server.value(statement, reading.device, reading.ts, database=DATABASE))


def _log(house: House) -> str:
    return house.daemon.log.read_text(encoding="utf-8")


async def _last_books(house: House) -> Books:
    """The daemon's counts once nothing is on its way any more, or what they are when that does not come."""

    async def quiet() -> bool:
        books = await asyncio.to_thread(house.books)
        return not books.in_flight and not books.spooled

    with contextlib.suppress(TimeoutError):
        await eventually(quiet, 15)
    return await asyncio.to_thread(house.books)


async def faults(folder: Path, runs: int, only: str) -> int:
    """Let every fault happen `runs` times, print and write the table; returns the exit code: 1 where a row failed."""
    rows = [row for row in MATRIX if only in row.name] or [row for row in BEYOND if only in row.name]
    shutil.rmtree(folder, ignore_errors=True)
    console = Console()
    results: dict[str, list[Result]] = {row.name: [] for row in rows}
    server = Server(folder / "postgres")
    try:
        await server.start()
        for run in range(runs):
            for number, row in enumerate(rows):
                place = folder / f"{number + 1:02}-{run + 1}"
                result = await perform(row, place, server)
                results[row.name].append(result)
                console.print(f"{place.name} {row.name}: {result.verdict} ({result.took_s:.0f} s)", highlight=False)
    finally:
        await asyncio.to_thread(server.postgres.process.stop)
    lines = [_line(row, results[row.name]) for row in rows]
    console.print(_table(lines))
    report = folder / "report.md"
    await asyncio.to_thread(report.write_text, _markdown(runs, lines), encoding="utf-8")
    console.print(f"written to {report}")
    return 1 if any(result.complaints for some in results.values() for result in some) else 0


HEADINGS = (
    *("fault", "published", "stored", "repeats", "rejections", "lost", "twice", "unaccounted"),
    *("spooled", "stores again, s", "caught up, s", "memory, MiB", "verdict"),
)


def _line(row: Row, results: list[Result]) -> list[str]:
    """Counts are summed over the runs; of times and memory the least and the greatest are given."""
    done = [result for result in results if not result.skipped]
    found = [result.findings for result in done]
    counts = (
        sum(each.acknowledged for each in found),
        sum(each.stored for each in found),
        sum(result.duplicates for result in done),
        sum(each.rejections for each in found),
        sum(each.lost for each in found),
        sum(each.twice for each in found),
        sum(result.unaccounted for result in done),
        max((result.spooled_max for result in done), default=0),
    )
    ranges = (
        _range([result.recovered_s for result in done], 1),
        _range([result.caught_up_s for result in done], 1),
        _range([result.memory_mib for result in done], 0),
    )
    verdicts = sorted({result.verdict for result in results})
    return [row.name, *(f"{count:,}" for count in counts), *ranges, " / ".join(verdicts)]


def _range(values: list[float | None], digits: int) -> str:
    known = sorted(value for value in values if value is not None)
    if len(known) < len(values) or not known:
        return "-"
    least, greatest = f"{known[0]:.{digits}f}", f"{known[-1]:.{digits}f}"
    return least if least == greatest else f"{least} to {greatest}"


def _table(lines: list[list[str]]) -> Table:
    table = Table()
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("fault", "verdict") else "right")
    for line in lines:
        table.add_row(*line)
    return table


def _markdown(runs: int, lines: list[list[str]]) -> str:
    rule = ["---" if heading in ("fault", "verdict") else "---:" for heading in HEADINGS]
    head = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {runs} run(s)"
    return "".join([f"{head}\n\n", *(f"| {' | '.join(line)} |\n" for line in [list(HEADINGS), rule, *lines])])
