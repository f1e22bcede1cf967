"""A process of the benchmark's own, at both ends: the load, the rivals and whoever looks on must not share the bench's.

The bench starts `python -m dev.bench.NAME` with its options as one JSON word. The worker says what it has counted, a
line of JSON each `REPORT_S`, and takes lines as commands; the end of its input is the end of its work, so none
outlives the bench. Whatever else it prints goes where its errors go.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import msgspec
import uvloop
from msgspec import Struct

ROOT = Path(__file__).parent.parent.parent
REPORT_S = 0.05
END_TIMEOUT_S = 60.0
LINE_BYTES_MAX = 16 * 1024 * 1024

Counts = TypeVar("Counts", bound=Struct)
Options = TypeVar("Options", bound=Struct)


class WorkerError(Exception):
    """A worker ended before it should, or with an error."""


class Worker(Generic[Counts]):
    """A worker as the bench sees it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path, latest: Counts) -> None:
        self._name = name
        self._process = process
        self._input = cast(asyncio.StreamWriter, process.stdin)  # it was started with pipes
        self._output = cast(asyncio.StreamReader, process.stdout)
        self._log = log
        self._latest = latest
        self._reading = asyncio.create_task(self._read(), name=f"reports of {name}")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def latest(self) -> Counts:
        """What it last said; raises WorkerError where it has ended."""
        if self._reading.done():
            self._reading.result()
            raise WorkerError(
                f"{self._name} ended with {self._process.returncode}; the end of {self._log}:\n{self._said()}"
            )
        return self._latest

    def tell(self, command: str) -> None:
        """Send a command."""
        self._input.write(f"{command}\n".encode())

    async def end(self) -> Counts:
        """Let it finish what it has begun, and return its last counts."""
        self._input.close()
        async with asyncio.timeout(END_TIMEOUT_S):
            await self._reading
            code = await self._process.wait()
        if code:
            raise WorkerError(f"{self._name} ended with {code}; the end of {self._log}:\n{self._said()}")
        return self._latest

    async def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await asyncio.wait([self._reading])

    async def _read(self) -> None:
        decoder = msgspec.json.Decoder(type(self._latest))
        async for line in self._output:
            self._latest = decoder.decode(line)

    def _said(self) -> str:
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


@asynccontextmanager
async def working(name: str, options: Struct, counts: Counts, folder: Path) -> AsyncIterator[Worker[Counts]]:
    """A worker for the time of the block; what it writes to stderr is in `folder`."""
    log = folder / f"{name}.log"
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"dev.bench.{name}", msgspec.json.encode(options).decode()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            limit=LINE_BYTES_MAX,
            start_new_session=True,  # Ctrl-C is the bench's to deal with
        )
    worker = Worker(name, process, log, counts)
    try:
        yield worker
    finally:
        await worker.kill()


class Reports:
    """The worker's end of the line to the bench."""

    def __init__(self, file: int) -> None:
        self._file = file

    def say(self, counts: Struct) -> None:
        """One line to the bench."""
        os.write(self._file, msgspec.json.encode(counts) + b"\n")

    async def attend(self, report: Callable[[], Struct], obey: Callable[[str], None] = lambda _: None) -> None:
        """Report, and obey commands, until the bench closes its end."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        reporting = asyncio.create_task(self._repeat(report), name="reports")
        async for line in reader:
            obey(line.decode().strip())
        reporting.cancel()

    async def _repeat(self, report: Callable[[], Struct]) -> None:
        while True:
            self.say(report())
            await asyncio.sleep(REPORT_S)


def run(work: Callable[[Options, Reports], Coroutine[Any, Any, None]], options_type: type[Options]) -> None:
    """Be a worker, with the options of the command line."""
    reports = Reports(os.dup(1))
    os.dup2(2, 1)
    uvloop.run(work(msgspec.json.decode(sys.argv[1], type=options_type), reports))
