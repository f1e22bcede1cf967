"""`python -m dev run`, `replay`, `bench`, `faults` and more; `--help` says what each does."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

import msgspec

from dev.ask import AskError, ask
from dev.bench.plan import PART_NAMES, QUICK, Plan
from dev.faults import faults
from dev.fuzz import fuzz
from dev.history import history
from dev.outage import outage
from dev.paint import PaintError, paint
from dev.processes import ProcessError
from dev.replay import ReplayError, replay
from dev.run import Run
from dev.stack import address
from dev.viewers import viewers

FOLDER = Path(".fleetwatt")


def main() -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args()
    try:
        match options.command:
            case "run":
                stack_folder = FOLDER.absolute()
                return asyncio.run(Run(stack_folder, options.fleet, options.seconds, options.seed).run())
            case "replay":
                asyncio.run(replay(options.file, FOLDER))
            case "history":
                asyncio.run(history(address("DATABASE_URL", FOLDER), options.vehicles, options.hours))
            case "viewers":
                stack_folder = FOLDER.absolute() / "viewers"
                sizes = (options.viewers, options.per_s, options.seconds, options.devices)
                asyncio.run(viewers(stack_folder, *sizes))
            case "ask":
                asyncio.run(ask(address("API_URL", FOLDER), options.vehicles, options.days, options.requests, [1, 32]))
            case "paint":
                asyncio.run(paint(address("API_URL", FOLDER), options.path, options.runs))
            case "bench":
                from dev.bench.run import bench  # what draws takes a second to load, for which nobody else should wait

                out = options.out.absolute()
                return asyncio.run(bench(FOLDER.absolute() / "bench" / "stack", _plan(options), out))
            case "outage":
                stack_folder = FOLDER.absolute() / "outage"
                return asyncio.run(outage(stack_folder, options.devices, options.minutes, options.runs))
            case "faults":
                return asyncio.run(faults(FOLDER.absolute() / "faults", options.runs, options.only))
            case "fuzz":
                return fuzz(FOLDER.absolute() / "fuzz", options.seconds)
    except (AskError, PaintError, ProcessError, ReplayError) as error:
        print(f"fleetwatt: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev", description="Try fleetwatt on this machine.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="private broker and database, daemon, simulated fleet")
    run.add_argument(
        "--fleet", type=_count, default=os.environ.get("FLEET", "200"), help="vehicles, each with its meter"
    )
    run.add_argument(
        "--seconds", type=_count, default=os.environ.get("SECONDS", "0"), help="how long; 0 = until Ctrl-C"
    )
    run.add_argument("--seed", type=_count, default=os.environ.get("SEED", "1"), help="another number, another fleet")
    play = commands.add_parser("replay", help="publish recorded readings")
    play.add_argument("file", type=Path, help='a file with {"topic": …, "payload": …} a line')
    past = commands.add_parser("history", help="a day of readings of a large fleet, for measuring queries")
    past.add_argument("--vehicles", type=_count, default=10_000, help="each with its meter")
    past.add_argument("--hours", type=_count, default=24, help="up to now")
    question = commands.add_parser("ask", help="how long the performance route takes on that history")
    question.add_argument("--vehicles", type=_count, default=10_000, help="as given to `history`")
    question.add_argument("--days", type=_count, default=1, help="of each vehicle")
    question.add_argument("--requests", type=_count, default=2_000, help="at one client, and at 32")
    audience = commands.add_parser("viewers", help="what it costs that many look at the first page under load")
    audience.add_argument("--viewers", type=_some, default=300, help="who follow the live figures")
    audience.add_argument("--per-s", type=_some, default=10_000, help="readings a second")
    audience.add_argument("--seconds", type=_some, default=20, help="without viewers, and with them")
    audience.add_argument("--devices", type=_even, default=20_000, help="half meters, half vehicles")
    picture = commands.add_parser("paint", help="how long the first page takes in a browser")
    picture.add_argument("--path", default="/", help="of the page")
    picture.add_argument("--runs", type=_some, default=9, help="how often, each without and with a cache")
    measure = commands.add_parser("bench", help="what is stored, how fast, at what cost, and how that compares")
    measure.add_argument("--quick", action="store_true", help="a few minutes, to see that it works")
    measure.add_argument(
        "--only", nargs="+", choices=PART_NAMES, metavar="NAME", help=f"some of: {', '.join(PART_NAMES)}"
    )
    measure.add_argument("--runs", type=_some, help="how often each")
    measure.add_argument("--seconds", type=_some, help="of each interval of the sustained rate")
    measure.add_argument("--devices", type=_even, nargs="+", help="half meters, half vehicles, for the sustained rate")
    measure.add_argument("--out", type=Path, default=FOLDER / "bench", help="the folder for page, plot and results")
    absence = commands.add_parser("outage", help="what a database that is away for an hour costs")
    absence.add_argument("--devices", type=_count, default=10_000, help="each sends a reading a minute")
    absence.add_argument("--minutes", type=_count, default=60, help="of readings that come meanwhile")
    absence.add_argument("--runs", type=_count, default=3, help="how often")
    matrix = commands.add_parser("faults", help="every fault under load, and a table of what came of it")
    matrix.add_argument("--runs", type=_count, default=1, help="how often each")
    matrix.add_argument("--only", metavar="WORDS", default="", help="those faults whose name contains this")
    fuzzing = commands.add_parser("fuzz", help="coverage-guided fuzzing of what comes from outside")
    fuzzing.add_argument("--seconds", type=_count, default=60, help="for each target")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    given = {name: getattr(options, name) for name in ("runs", "seconds", "devices", "only")}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value}
    return msgspec.structs.replace(QUICK if options.quick else Plan(), **changes)


def _some(text: str) -> int:
    if not (number := _count(text)):
        raise argparse.ArgumentTypeError("0 is not enough")
    return number


def _even(text: str) -> int:
    if (number := _some(text)) % 2:
        raise argparse.ArgumentTypeError(f"{text} cannot be halved")
    return number


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
