"""The page: what was measured, where, how, and what was checked, as Markdown from recorded results."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dev.bench.plan import PartName, Plan
from dev.bench.prober import PER_S, POLL_S
from dev.bench.results import Results, Spread, Step
from dev.bench.sections import CEILING_SHARES, CHECKED, INTRODUCTION, PROCESSES, SECTIONS, Column, Section
from dev.bench.sustained import WINDOW


def write_page(results: Results, out: Path) -> None:
    """Write `benchmark.md`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.md").write_text("\n".join(_lines(results)) + "\n", encoding="utf-8")


def _lines(results: Results) -> Iterable[str]:
    terms = _terms(results.plan)
    yield from ("# Benchmark", "")
    yield INTRODUCTION.format(**terms)
    yield ""
    yield "![Sustained rate, latency, comparison and CPU](plot.png)"
    for part, section in SECTIONS.items():
        if names := results.names(part):
            yield from ("", f"## {section.title}", "", section.text.format(**terms), "")
            yield from _table_of(results, part, section, names)
            yield from EXTRAS.get(part, _cpu)(results, part, names)
    yield from _conditions(results)
    yield from _checked(results)


def _terms(plan: Plan) -> dict[str, Any]:
    """What the texts name."""
    return {
        "runs": "one run" if plan.runs == 1 else f"{plan.runs} runs",
        "seconds": plan.seconds,
        "seconds_elsewhere": plan.seconds_elsewhere,
        "warm_up_s": plan.warm_up_s,
        "fleet": plan.fleet,
        "window": WINDOW,
        "probes_per_s": PER_S,
        "poll_ms": POLL_S * 1000,
    }


def _table_of(results: Results, part: PartName, section: Section, names: list[str]) -> Iterable[str]:
    columns = [column for column in section.columns if any(_has(results, Step(part, name), column) for name in names)]
    rows = [
        [_shown(name), *(_of(results.spread(Step(part, name), column.value), column.digits) for column in columns)]
        for name in names
    ]
    return _table([section.first_heading, *(column.heading for column in columns)], rows)


def _has(results: Results, step: Step, column: Column) -> bool:
    return results.spread(step, column.value) is not None


def _cpu(results: Results, part: PartName, names: list[str]) -> Iterable[str]:
    shown = [name for name in PROCESSES if any(results.spread(Step(part, of), f"cpu_us {name}") for of in names)]
    if not shown:
        return
    rows = []
    for name in names:
        spreads = [results.spread(Step(part, name), f"cpu_us {process}") for process in shown]
        total = sum(spread.median for spread in spreads if spread)
        rows.append([_shown(name), *(_of(spread, 1) for spread in spreads), f"{total:,.1f}"])
    yield from ("", "CPU, µs a reading:", "")
    yield from _table([SECTIONS[part].first_heading, *(PROCESSES[name] for name in shown), "together"], rows)


def _rivals(results: Results, part: PartName, names: list[str]) -> Iterable[str]:
    ours = Step("sustained", str(results.plan.fleet))
    if results.of(ours):
        yield ""
        yield "How many times as much fleetwatt stores, sustained, with as many devices:"
        yield ""
        ratios = [[name, _of(results.ratio(ours, Step(part, name), "stored_per_s"), 1)] for name in names]
        yield from _table(["client", "times"], ratios)
    yield from _cpu(results, part, names)


def _ceiling(results: Results, part: PartName, names: list[str]) -> Iterable[str]:
    ours = Step("sustained", str(results.plan.fleet))
    if results.of(ours):
        yield ""
        yield CEILING_SHARES
        yield ""
        shares = [[name, _of(results.ratio(ours, Step(part, name), "stored_per_s"), 2)] for name in names]
        yield from _table(["alone", "share"], shares)
    yield from _cpu(results, part, names)


EXTRAS: dict[PartName, Callable[[Results, PartName, list[str]], Iterable[str]]] = {
    "rivals": _rivals,
    "ceiling": _ceiling,
}
"""What follows a part's table; CPU by process where nothing is said."""


def _conditions(results: Results) -> Iterable[str]:
    yield from ("", "## Where", "")
    yield from _pairs("machine", results.machine)
    yield ""
    yield from _pairs("version", results.versions)
    yield from ("", "Settings of PostgreSQL and of the broker, in force throughout; the daemon has its defaults:", "")
    yield from _pairs("setting", {f"`{name}`": value for name, value in results.settings.items()})


def _pairs(heading: str, pairs: dict[str, str]) -> Iterable[str]:
    return _table([heading, ""], [[name, value] for name, value in pairs.items()], " --- ")


def _checked(results: Results) -> Iterable[str]:
    checks = [check for record in results.records for check in record.measured.checks]
    failures = results.failures()
    rows = sum(check.found for check in checks if check.what == "rows of the history")
    yield from ("", "## What was checked", "")
    yield CHECKED
    yield ""
    if failures:
        yield f"**{len(failures)} of {len(checks)} checks do not hold:**"
        yield ""
        for record, check in failures:
            step = f"run {record.run}, {record.step.part}, {_shown(record.step.name)}"
            yield f"- {step}: {check.what}: {check.found:,} instead of {check.expected:,}"
    else:
        yield f"All {len(checks)} checks hold; {rows:,} rows were counted in the histories."


def _table(headings: list[str], rows: list[list[str]], rule: str = " ---: ") -> Iterable[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'|'.join([' --- ', *[rule] * (len(headings) - 1)])}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _of(spread: Spread | None, digits: int) -> str:
    """Median, and the others where they differ."""
    if spread is None:
        return ""
    median, least, greatest = (f"{number:,.{digits}f}" for number in (spread.median, spread.least, spread.greatest))
    return median if least == greatest else f"{median} ({least} to {greatest})"


def _shown(name: str) -> str:
    return f"{int(name):,}" if name.isdecimal() else name
