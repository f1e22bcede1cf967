"""The figure of the page: four panels from recorded results, as PNG and SVG."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from dev.bench.plan import PartName
from dev.bench.results import Results, Spread, Step
from dev.bench.sections import PROCESSES

# Okabe and Ito's colours, which people with any kind of colour blindness tell apart; black stays for text.
BLUE, ORANGE, GREEN, VERMILION, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#999999"
OF_PROCESS = {"daemon": BLUE, "client": VERMILION, "PostgreSQL": GREEN, "broker": ORANGE, "generator": GREY}
LATENCIES = {"p50_ms": ("p50", BLUE, "o"), "p99_ms": ("p99", ORANGE, "s"), "max_ms": ("at most", VERMILION, "^")}
STYLE: dict[Any, object] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "svg.hashsalt": "fleetwatt",
}
COMPARED: dict[PartName, tuple[str, str]] = {
    "ceiling": ("{}, alone", SKY),
    "sustained": ("fleetwatt, all of it", BLUE),
    "rivals": ("{}", VERMILION),
}
INCHES, DPI = (11, 8), 130


def write_plot(results: Results, out: Path) -> None:
    """Write `plot.png` and `plot.svg`."""
    out.mkdir(parents=True, exist_ok=True)
    panels = [draw for draw, parts, value in PANELS if any(_measured(results, part, value)[0] for part in parts)]
    if not panels:
        return
    with mpl.rc_context(STYLE):
        rows, columns = (len(panels) + 1) // 2, min(2, len(panels))
        figure = Figure(
            figsize=(INCHES[0] / 2 * columns, INCHES[1] / 2 * rows), layout="constrained", facecolor="white"
        )
        for draw, axes in zip(panels, figure.subplots(rows, columns, squeeze=False).flat, strict=False):
            draw(axes, results)
        for axes in figure.axes[len(panels) :]:
            axes.remove()
        figure.suptitle(_title(results), fontsize=9, color="#555555")
        figure.savefig(out / "plot.png", dpi=DPI)
        figure.savefig(out / "plot.svg", metadata={"Date": None})


def _title(results: Results) -> str:
    machine, plan = results.machine, results.plan
    runs = f"medians of {plan.runs} runs, whiskers from the least to the greatest" if plan.runs > 1 else "one run"
    return (
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory']}, everything on this machine; "
        f"intervals of {plan.seconds} s and {plan.seconds_elsewhere} s, {runs}"
    )


def _sustained(axes: Axes, results: Results) -> None:
    names, spreads = _measured(results, "sustained", "stored_per_s")
    axes.bar(range(len(names)), [spread.median for spread in spreads], 0.6, color=BLUE)
    axes.errorbar(range(len(names)), *_whiskers(spreads), fmt="none", ecolor="black", capsize=4, lw=1)
    for at, spread in enumerate(spreads):
        axes.annotate(f"{spread.median:,.0f}", (at, 0), (0, 6), textcoords="offset points", ha="center", color="white")
    axes.set_xticks(range(len(names)), [_number(name) for name in names])
    axes.set_xlabel("devices, half meters and half vehicles")
    axes.set_ylabel("readings/s stored")
    axes.set_title("Sustained: published and stored at the same time")
    _thousands(axes.yaxis)
    axes.grid(axis="y", lw=0.4)


def _latency(axes: Axes, results: Results) -> None:
    for n, (value, (label, colour, marker)) in enumerate(LATENCIES.items()):
        names, spreads = _measured(results, "latency", value)
        places = [at + (n - 1) * 0.28 for at in range(len(names))]
        axes.errorbar(places, *_whiskers(spreads), fmt=marker, color=colour, capsize=3, ms=7, label=label)
        for place, spread in zip(places, spreads, strict=True):
            axes.annotate(
                f"{spread.median:,.0f}", (place, spread.greatest), (0, 6), textcoords="offset points", ha="center"
            )
    axes.set_yscale("log")
    axes.set_ylim(top=axes.get_ylim()[1] * 3)  # room for the legend
    axes.yaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
    axes.set_xticks(range(len(names)), [_number(name) for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel("load, messages/s")
    axes.set_ylabel("ms (logarithmic)")
    axes.set_title("Latency: from publish to a SELECT that sees it")
    axes.legend(frameon=False, ncols=3, loc="upper left")
    axes.grid(axis="y", lw=0.4)


def _comparison(axes: Axes, results: Results) -> None:
    ours = Step("sustained", str(results.plan.fleet))
    rows = [
        (label.format(name), Step(part, name), colour, spread)
        for part, (label, colour) in COMPARED.items()
        for name, spread in zip(*_measured(results, part, "stored_per_s"), strict=True)
        if part != "sustained" or Step(part, name) == ours
    ]
    spreads = [spread for *_, spread in rows]
    places = range(len(rows))
    axes.barh(places, [spread.median for spread in spreads], 0.6, color=[colour for _, _, colour, _ in rows])
    medians, reach = _whiskers(spreads)
    axes.errorbar(medians, places, xerr=reach, fmt="none", ecolor="black", capsize=3, lw=1)
    for place, (_, step, _, spread) in zip(places, rows, strict=True):
        ratio = results.ratio(ours, step, "stored_per_s") if step != ours else None
        label = f"{spread.median:,.0f}" + (_compared(step, ratio) if ratio else "")
        axes.annotate(label, (spread.greatest, place), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [label for label, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, max(spread.greatest for spread in spreads) * 1.6)
    axes.set_xlabel(f"readings/s, {results.plan.fleet:,} devices")
    axes.set_title("What would be possible, and other clients")
    axes.locator_params(axis="x", nbins=5)
    _thousands(axes.xaxis)
    axes.grid(axis="x", lw=0.4)


def _compared(step: Step, ratio: Spread) -> str:
    if step.part == "ceiling":
        return f" (fleetwatt: {ratio.median:.0%})"
    return f" (fleetwatt: {ratio.median:,.0f} x)"


def _cpu(axes: Axes, results: Results) -> None:
    names, _ = _measured(results, "sustained", "stored_per_s")
    steps = [Step("sustained", name) for name in names]
    left = [0.0] * len(steps)
    for process, colour in OF_PROCESS.items():
        spreads = [results.spread(step, f"cpu_us {process}") for step in steps]
        if not any(spreads):
            continue
        widths = [spread.median if spread else 0.0 for spread in spreads]
        bars = axes.barh(range(len(steps)), widths, 0.6, left=left, color=colour, label=PROCESSES[process])
        axes.bar_label(
            bars,
            [f"{width:.1f}" for width in widths],
            label_type="center",
            color="white" if colour == BLUE else "black",
        )
        left = [sum(pair) for pair in zip(left, widths, strict=True)]
    for at, total in enumerate(left):
        axes.annotate(f"{total:.1f}", (total, at), (5, 0), textcoords="offset points", va="center", weight="bold")
    axes.set_yticks(range(len(steps)), [_number(name) for name in names])
    axes.set_ylim(len(steps) - 0.4, -0.9)  # the legend is above the bars
    axes.set_xlim(0, max(left) * 1.12)
    axes.set_ylabel("devices")
    axes.set_xlabel("µs of CPU for each reading")
    axes.set_title("CPU by process, sustained")
    axes.legend(frameon=False, ncols=4, loc="upper left", columnspacing=1, handlelength=1)


def _measured(results: Results, part: PartName, value: str) -> tuple[list[str], list[Spread]]:
    """The names of a part's steps that have this value, and the values."""
    found = {name: results.spread(Step(part, name), value) for name in results.names(part)}
    measured = {name: spread for name, spread in found.items() if spread}
    return list(measured), list(measured.values())


def _whiskers(spreads: list[Spread]) -> tuple[list[float], list[list[float]]]:
    """Medians, and how far the least and the greatest are from them."""
    below = [spread.median - spread.least for spread in spreads]
    above = [spread.greatest - spread.median for spread in spreads]
    return [spread.median for spread in spreads], [below, above]


def _thousands(axis: Axis) -> None:
    axis.set_major_formatter(lambda number, _: f"{number:,.0f}")


def _number(name: str) -> str:
    return f"{int(name):,}"


PANELS: tuple[tuple[Callable[[Axes, Results], None], tuple[PartName, ...], str], ...] = (
    (_sustained, ("sustained",), "stored_per_s"),
    (_latency, ("latency",), "p50_ms"),
    (_comparison, ("rivals", "ceiling"), "stored_per_s"),
    (_cpu, ("sustained",), "stored_per_s"),
)
"""Each with the parts of which any must have this value."""
