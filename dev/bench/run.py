"""`python -m dev bench`: every step, in as many runs as asked for, and a page with what came of it.

The runs go round: all steps once, then all steps again. What changes on the machine meanwhile then meets all alike.
"""

from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from dev.bench.bed import Bed, bed
from dev.bench.machine import describe_machine, describe_settings, describe_versions
from dev.bench.page import write_page
from dev.bench.parts import PARTS, seconds_of, steps
from dev.bench.plan import Plan
from dev.bench.plot import write_plot
from dev.bench.results import Check, Measured, Record, Results, Step
from dev.bench.sustained import SustainedError
from dev.bench.worker import WorkerError

HEADLINES = {
    "stored_per_s": "readings/s",
    "resident_mib": "MiB",
    "p50_ms": "ms p50",
    "p99_ms": "ms p99",
    "max_ms": "ms at most",
}
"""What is told of a step when it is done, and in what words."""


async def bench(folder: Path, plan: Plan, out: Path) -> int:
    """Measure, write the page into `out`, and return the exit code: 1 where a check does not hold."""
    console = Console()
    to_do = [(run, step) for run in range(1, plan.runs + 1) for step in steps(plan)]
    estimated_s = sum(seconds_of(plan, step) for _, step in to_do)
    console.print(f"{len(to_do)} measurements, about {estimated_s / 60:.0f} min; leave the machine alone meanwhile")
    results = Results(describe_machine(folder), {}, {}, plan, [])
    with _progress(console) as progress:
        task = progress.add_task("", total=estimated_s, detail="")
        for run, step in to_do:
            progress.update(task, description=f"run {run}: {_name(step)}", detail="starting")
            tell = partial(_tell, progress, task)
            try:
                async with bed(folder) as place:
                    await _describe(place, results)
                    measured = await PARTS[step.part].measure(place, step.name, plan, tell)
            except (WorkerError, SustainedError, TimeoutError) as error:  # the others are worth having all the same
                measured = Measured({}, [Check(f"finished ({error})", 1, 0)])
            record = Record(step, run, measured)
            results.records.append(record)
            console.print(_headline(record))
            progress.advance(task, seconds_of(plan, step))
            _write_results(results, out)
    write_page(results, out)
    write_plot(results, out)
    return _conclude(results, out, console)


def _conclude(results: Results, out: Path, console: Console) -> int:
    for record, check in results.failures():
        console.print(f"run {record.run}: {_name(record.step)}: {check.what}: {check.found:,}, not {check.expected:,}")
    console.print(f"the page is {out / 'benchmark.md'}")
    return 1 if results.failures() else 0


async def _describe(place: Bed, results: Results) -> None:
    """The same each time, and it costs next to nothing."""
    results.versions = await describe_versions(place.broker, place.connection)
    results.settings = await describe_settings(place.broker, place.connection)


def _write_results(results: Results, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(results), indent=1)
    (out / "results.json").write_bytes(text + b"\n")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
        console=console,
        transient=True,
    )


def _tell(progress: Progress, task: TaskID, line: str) -> None:
    progress.update(task, detail=line)


def _headline(record: Record) -> str:
    values = record.measured.values
    told = [f"{values[name]:,.0f} {unit}" for name, unit in HEADLINES.items() if name in values]
    wrong = [check for check in record.measured.checks if not check.holds]
    return f"run {record.run}: {_name(record.step)}: {', '.join(told)}{', NOT ALL IS THERE' if wrong else ''}"


def _name(step: Step) -> str:
    name = f"{int(step.name):,}" if step.name.isdecimal() else step.name
    return f"{step.part}, {name}"
