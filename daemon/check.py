"""`python -m daemon check`: what is wrong, and what mends it. `daemon.doctor` does the looking; this is the report.

Exit codes: 0 where nothing fails (warnings included), 1 where something does, 2 where a setting is wrong.
"""

import argparse
import asyncio
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TextIO, get_args

import msgspec

from daemon.doctor.access import Account
from daemon.doctor.examination import Options, examine, settings_are_wrong
from daemon.doctor.findings import Finding, Level
from daemon.doctor.limits import CONFIGURATION
from sql.settings import SettingsError

_NAME_WIDTH = 22
_LEVEL_WIDTH = 9
_COLOURS: dict[Level, str] = {"ok": "32", "warning": "33", "failure": "31;1", "skipped": "2"}


class Report(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    level: Level
    """The worst of the findings."""
    exit_code: int
    findings: list[Finding]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, for machines")
    parser.add_argument(
        "--probe-account",
        metavar="FILE",
        help="a file with NAME:PASSWORD of a device's account (- reads it from standard input); with it one message "
        "goes all the way into the database, where it is removed again",
    )
    parser.add_argument(
        "--probe-device", metavar="ID", help="publish as this device (what is not said: the name of the account)"
    )
    parser.add_argument(
        "--broker-configuration",
        metavar="FILE",
        default=CONFIGURATION,
        help="where a broker on this machine has its configuration (%(default)s)",
    )


def main(chosen: argparse.Namespace) -> int:
    """Examine and report; returns the exit code."""
    findings: list[Finding] = []
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if not chosen.json:
            _print(finding, sys.stdout, colour=colour)

    code = 0
    try:
        options = Options(
            account=_read_account(chosen.probe_account) if chosen.probe_account else None,
            device=chosen.probe_device,
            configuration=Path(chosen.broker_configuration),
        )
        asyncio.run(examine(os.environ, options, tell))
    except SettingsError as error:
        tell(settings_are_wrong(error))
        code = 2
    except KeyboardInterrupt:
        return 130  # what a shell says of a program that was interrupted
    levels = Counter(finding.level for finding in findings)
    code = code or (1 if levels["failure"] else 0)
    if chosen.json:
        worst: Level = "failure" if levels["failure"] else "warning" if levels["warning"] else "ok"
        sys.stdout.write(msgspec.json.encode(Report(worst, code, findings)).decode() + "\n")
    else:
        sys.stdout.write(_summarize(levels) + "\n")
    return code


def _read_account(file: str) -> Account:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--probe-account is {file!r}, which cannot be read ({error})") from error
    name, colon, password = text.strip().partition(":")
    if not (name and colon and password):
        raise SettingsError(f"--probe-account is {file!r}, which does not hold NAME:PASSWORD in one line")
    return Account(name, password)


def _print(finding: Finding, output: TextIO, *, colour: bool) -> None:
    level = finding.level.ljust(_LEVEL_WIDTH)
    if colour:
        level = f"\x1b[{_COLOURS[finding.level]}m{level}\x1b[0m"
    output.write(f"{level}{finding.name.ljust(_NAME_WIDTH)}{finding.text}\n")
    if finding.remedy:
        output.write(f"{' ' * _LEVEL_WIDTH}{'->'.rjust(_NAME_WIDTH - 1)} {finding.remedy}\n")
    output.flush()  # the next one may take seconds


def _summarize(levels: Counter[Level]) -> str:
    return ", ".join(f"{levels[level]} {level}" for level in get_args(Level))
