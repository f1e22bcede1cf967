"""`python -m daemon rejections`: what could not be stored, listed, shown, and tried again.

Rule: everything in a rejection was written by somebody who may mean harm, so nothing of it reaches a terminal but
characters that print; `show --raw` alone writes the bytes as they came.

Exit codes: 0 in good order, 1 something failed or is not there, 2 the command line or a setting is wrong.
"""

import argparse
import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn

import asyncpg
import msgspec
from msgspec import Meta

from daemon.readings import REASONS, Rules, decode_again
from sql import rejections
from sql.errors import SchemaError, sqlstate
from sql.migrate import verify
from sql.partitions import Days
from sql.pool import Connection, Pool, lease, open_pool
from sql.rejections import Chosen, Groups, Shown
from sql.replay import Report, replay
from sql.settings import DatabaseSettings, read
from sql.visible import hex_dump, printable, printable_lines

GROUPS_SHOWN = 50
PAYLOAD_BYTES_SHOWN = 16 * 1024
RAW_BYTES_MAX = 2**30
"""More than any rejection has."""
ALL = sys.maxsize

_AGO = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class ReplaySettings(DatabaseSettings, frozen=True, kw_only=True):
    """What a replay needs beside the database: which times are believed."""

    retention_days: Annotated[
        int, Meta(ge=0, le=36500, description="a whole number from 0 (keep for ever) to 36500")
    ] = 400
    clock_ahead_max_s: Annotated[float, Meta(ge=0, le=86400, description="seconds, from 0 to 86400")] = 300

    @property
    def rules(self) -> Rules:
        """Which times are believed."""
        retention = timedelta(days=self.retention_days) if self.retention_days else None
        return Rules(clock_ahead_max=timedelta(seconds=self.clock_ahead_max_s), retention=retention)


class _FailedError(Exception):
    """The command cannot do what it was asked; the text is for the technician."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes. A filter may stand before the action or behind it."""
    _add_filters(parser, None)
    _add_form(
        parser, None, f"list: show N groups at most ({GROUPS_SHOWN}); replay: look at N at most, the oldest (all)"
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="by reason and device, the most frequent first (without an action: this)")
    _add_filters(listing, argparse.SUPPRESS)
    _add_form(listing, argparse.SUPPRESS, f"show N groups at most (without it: {GROUPS_SHOWN})")
    showing = actions.add_parser("show", help="one of them, with all that came")
    showing.add_argument("id", type=_whole_number, metavar="ID", help="as `list` has it under `example`")
    form = showing.add_mutually_exclusive_group()
    form.add_argument("--raw", action="store_true", help="write the payload to standard output, byte by byte")
    form.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON")
    replaying = actions.add_parser(
        "replay", help="decode them again and store what passes now; says what it would do, until --yes"
    )
    _add_filters(replaying, argparse.SUPPRESS)
    _add_form(replaying, argparse.SUPPRESS, "look at N at most, the oldest (without it: all)")
    replaying.add_argument(
        "--id", type=_whole_number, action="append", metavar="ID", dest="ids", help="this one (may be repeated)"
    )
    replaying.add_argument("--yes", "--do", action="store_true", help="do it, and not only say what it would do")


def main(chosen: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever a terminal can show
    try:
        match chosen.action:
            case "show":
                return _run(_show, read(DatabaseSettings, os.environ), chosen)
            case "replay":
                return _run(_replay, read(ReplaySettings, os.environ), chosen)
            case _:
                return _run(_list, read(DatabaseSettings, os.environ), chosen)
    except BrokenPipeError:  # whoever read along has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(work: Callable[..., Coroutine[Any, Any, None]], settings: DatabaseSettings, chosen: argparse.Namespace) -> int:
    async def connected() -> None:
        async with open_pool(settings.database_url, "fleetwatt-rejections", 1) as pool:
            async with lease(pool) as connection:
                await verify(connection)
            await work(pool, settings, chosen)

    try:
        asyncio.run(connected())
    except BrokenPipeError:
        raise
    except (_FailedError, SchemaError) as error:
        return _failed(str(error))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        text = printable(str(error) or type(error).__name__)
        return _failed(f"the database failed: {text} ({sqlstate(error)}); what was done before stays done")
    except KeyboardInterrupt:
        return _failed("stopped; what was done before stays done")
    return 0


async def _list(pool: Pool, _: DatabaseSettings, chosen: argparse.Namespace) -> None:
    async with lease(pool) as connection:
        groups = await rejections.group(connection, _chosen(chosen), chosen.limit or GROUPS_SHOWN)
    _say(_json(groups) if chosen.json else list_text(groups, _columns()))


async def _show(pool: Pool, _: DatabaseSettings, chosen: argparse.Namespace) -> None:
    bytes_max = RAW_BYTES_MAX if chosen.raw or chosen.json else PAYLOAD_BYTES_SHOWN
    async with lease(pool) as connection:
        shown = await rejections.get(connection, chosen.id, bytes_max)
    if shown is None:
        raise _FailedError(f"there is no rejection {chosen.id}; it may have been replayed or purged")
    if chosen.raw:
        sys.stdout.buffer.write(shown.content)
    else:
        _say(_json(shown) if chosen.json else show_text(shown))


async def _replay(pool: Pool, settings: ReplaySettings, chosen: argparse.Namespace) -> None:
    @asynccontextmanager
    async def connect() -> AsyncIterator[Connection]:
        async with lease(pool) as connection:
            yield connection

    now = datetime.now(UTC)
    report = await replay(
        connect,
        msgspec.structs.replace(_chosen(chosen), ids=chosen.ids),
        partial(decode_again, rules=settings.rules, now=now),
        Days(),
        dry_run=not chosen.yes,
        limit=chosen.limit or ALL,
    )
    _say(_json(report) if chosen.json else replay_text(report))


def list_text(groups: Groups, columns: int) -> str:
    """The groups as a table, and how to go on."""
    if not groups.items:
        return "there are no such rejections"
    rows = [
        (
            str(group.rejections),
            group.reason,
            group.device,
            _time(group.first_received_at),
            _time(group.last_received_at),
            str(group.example_id),
            printable(group.example_detail),
        )
        for group in groups.items
    ]
    head = ("count", "reason", "device", "first (UTC)", "last (UTC)", "example", "what is wrong with the example")
    lines = [_cut(line, columns) for line in _table(head, rows, right={0, 5})]
    total = f"{_number(groups.rejections, 'rejection')} in {_number(groups.groups, 'group')}"
    if groups.groups > len(rows):
        total += f", the largest {len(rows)} are shown; --limit shows more"
    if not groups.is_complete:
        total += "; there are more: only the newest were counted, --since and --until choose others"
    return "\n".join(
        [*lines, "", total, "show ID shows an example whole; replay says what would be stored if it came now"]
    )


def show_text(shown: Shown) -> str:
    """One rejection for people."""
    head = {
        "rejection": str(shown.id),
        "received": f"{shown.received_at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f} UTC",
        "topic": printable(shown.topic),
        "device": shown.device,
        "reason": shown.reason,
        "detail": printable(shown.detail),
    }
    form = "not UTF-8" if shown.payload is None else "text" if shown.payload else "empty"
    head["payload"] = f"{_number(shown.payload_bytes, 'byte')}, {form}"
    body = hex_dump(shown.content) if shown.payload is None else printable_lines(shown.payload)
    left = shown.payload_bytes - len(shown.content)
    lines = [f"{name:<10} {value}" for name, value in head.items()]
    if body:
        lines += ["", body]
    if left:
        lines += ["", f"… and {_number(left, 'byte')} more; --raw writes all of it"]
    return "\n".join(lines)


def replay_text(report: Report) -> str:
    """What a replay did, or would do, for people."""
    if not report.outcomes:
        return "there are no rejections to replay"
    rows = []
    for outcome in sorted(report.outcomes, key=lambda outcome: (-outcome.rejections, outcome.reason)):
        because = sorted(outcome.rejected.items(), key=lambda counted: (-counted[1], counted[0]))
        rows.append(
            (
                outcome.reason,
                str(outcome.rejections),
                str(outcome.stored),
                str(outcome.duplicate),
                str(sum(outcome.rejected.values())),
                ", ".join(f"{reason} {count}" for reason, count in because) or "-",
            )
        )
    store = "would be stored" if report.dry_run else "stored"
    head = ("reason", "rejections", store, "there already", "still rejected", "because of")
    lines = _table(head, rows, right={1, 2, 3, 4})
    if report.next:
        lines += ["", "there are more: that was --limit of them, the oldest"]
    if not any(outcome.stored or outcome.duplicate for outcome in report.outcomes):
        lines += ["", "nothing was changed, since none of them passes"]
    elif report.dry_run:
        lines += ["", "nothing was changed; the same command with --yes does it"]
    else:
        lines += ["", "done: what was stored or there already is no rejection any more; the others stay"]
    return "\n".join(lines)


def instant(text: str) -> datetime:
    """A time from the command line: RFC 3339, a date, or so long ago (`90m`, `2d`). Without an offset it is UTC."""
    try:
        if found := _AGO.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        _refuse(f"{text!a} is no time; allowed: 2026-03-14T15:00:00Z, 2026-03-14 (UTC), or 90m, 12h, 2d ago")


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text) or not int(text):
        _refuse(f"{text!a} is not allowed; allowed: a whole number from 1")
    return int(text)


def _refuse(sentence: str) -> NoReturn:
    raise argparse.ArgumentTypeError(sentence)


def _add_filters(parser: argparse.ArgumentParser, default: str | None) -> None:
    add = partial(parser.add_argument, default=default)
    add("--reason", choices=REASONS, metavar="REASON", help="one of those in docs/readings.md")
    add("--device", metavar="ID", help="a meter or vehicle; - for what came on no device's topic")
    time = "such as 2026-03-14T15:00:00Z, 2026-03-14, or 2h for two hours ago"
    add("--since", type=instant, metavar="TIME", help=f"received then or later, {time}")
    add("--until", type=instant, metavar="TIME", help="received before")


def _add_form(parser: argparse.ArgumentParser, default: str | None, limit_help: str) -> None:
    parser.add_argument("--limit", type=_whole_number, default=default, metavar="N", help=limit_help)
    parser.add_argument("--json", action="store_true", default=default, help="as JSON")


def _chosen(chosen: argparse.Namespace) -> Chosen:
    return Chosen(reason=chosen.reason, device=chosen.device, since=chosen.since, until=chosen.until)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: set[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def _columns() -> int:
    """The width of the terminal; what is read by a program is not cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else ALL


def _cut(line: str, columns: int) -> str:
    return line if len(line) <= columns else f"{line[: columns - 1]}…"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _time(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _failed(sentence: str) -> int:
    print(f"fleetwatt: {sentence}", file=sys.stderr)  # noqa: T201 - a line for the technician, not a log record
    return 1


def _say(text: str) -> None:
    print(text)  # noqa: T201 - the answer, on standard output
    sys.stdout.flush()
