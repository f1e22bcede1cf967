"""`python -m daemon rollups`: how far the rollups are, and making them anew from the history.

A daemon may run meanwhile: the two take turns, some devices at a time. Whatever ends a rebuild leaves rollups that are
right, made anew or not; give the command again.

Exit codes: 0 in good order, 1 something failed, 2 the command line or a setting is wrong.
"""

import argparse
import asyncio
import os
import sys
from datetime import UTC, datetime
from typing import Annotated

import asyncpg
from msgspec import Meta

from sql.errors import SchemaError
from sql.hours import DAY, day_floor, hour_floor
from sql.measure import LONG_AGO, rollup_state
from sql.migrate import verify
from sql.partitions import list_days
from sql.pool import Pool, lease, open_pool
from sql.rollups import KINDS, count_devices, count_late, lag, rebuild, restart, step
from sql.settings import DatabaseSettings, read
from sql.store import Kind

TURN_PAUSE_S = 0.05
"""How long to wait where somebody else has the turn."""


class RollupSettings(DatabaseSettings, frozen=True, kw_only=True):
    """What a rebuild needs beside the database: which steps of a counter are believed."""

    power_max_kw: Annotated[float, Meta(gt=0, le=100_000, description="kilowatts, above 0 and up to 100000")] = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("state", help="how far they are (what is done when no action is given)")
    anew = actions.add_parser("rebuild", help="make them anew from the history")
    anew.add_argument("--from", dest="start", type=_instant, metavar="TIME", help="UTC, 2026-03-14 or 2026-03-14T15:00")
    anew.add_argument("--to", dest="end", type=_instant, metavar="TIME", help="the same; both left out: all there is")


def main(chosen: argparse.Namespace) -> int:
    """Do what was chosen; returns the exit code."""
    settings = read(RollupSettings, os.environ)
    if chosen.action == "rebuild" and chosen.start and chosen.end and chosen.start >= chosen.end:
        said = f"--from is {chosen.start:%F %H:%M} UTC, which is not before --to, {chosen.end:%F %H:%M} UTC"
        print(f"fleetwatt: {said}", file=sys.stderr)  # noqa: T201 - for the technician
        return 2
    try:
        asyncio.run(_main(settings, chosen))
    except (SchemaError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        print(f"fleetwatt: {str(error) or type(error).__name__}", file=sys.stderr)  # noqa: T201 - for the technician
        return 1
    return 0


async def _main(settings: RollupSettings, chosen: argparse.Namespace) -> None:
    async with open_pool(settings.database_url, "fleetwatt rollups", 1) as pool:
        async with lease(pool) as connection:
            await verify(connection)
        for kind in KINDS:
            if chosen.action == "rebuild":
                await _rebuild(pool, kind, chosen.start, chosen.end, settings.power_max_kw)
            else:
                await _tell(pool, kind)


async def _tell(pool: Pool, kind: Kind) -> None:
    async with lease(pool) as connection:
        state = await rollup_state(connection, kind)
        late = await count_late(connection, kind)
    if state.rolled_through == LONG_AGO:
        _say(f"{kind.name}s: nothing rolled up yet")
        return
    behind = lag(state, datetime.now(UTC))
    _say(
        f"{kind.name}s: rolled up through {state.rolled_through:%F %H:%M} UTC, {behind} behind; "
        f"{late} marks of late readings wait; POWER_MAX_KW {state.power_max_kw:g}"
    )


async def _rebuild(pool: Pool, kind: Kind, start: datetime | None, end: datetime | None, power_max_kw: float) -> None:
    async with lease(pool) as connection:
        state = await rollup_state(connection, kind)
        days = sorted((await list_days(connection, kind.history_table)).values())
        devices = await count_devices(connection, kind)
    first = datetime(days[0].year, days[0].month, days[0].day, tzinfo=UTC) if days else state.rolled_through
    is_all = start is None and end is None
    start = max(first, state.kept_from, hour_floor(start or first))
    end = min(state.rolled_through, end or state.rolled_through)
    if start >= end:
        _say(f"{kind.name}s: nothing there to make anew")
        return
    if is_all:
        await _rebuild_all(pool, kind, start, end, power_max_kw)
    else:
        await _rebuild_days(pool, kind, start, end, state.power_max_kw, devices)
    _say(f"{kind.name}s: made anew from {start:%F %H:%M} to {end:%F %H:%M} UTC")


async def _rebuild_all(pool: Pool, kind: Kind, start: datetime, end: datetime, power_max_kw: float) -> None:
    """Begin anew with this power. Until an hour is made again the analytics read the history, whatever ends this."""
    is_begun = False
    while not is_begun:
        async with lease(pool) as connection:
            is_begun = await restart(connection, kind, start, power_max_kw)
        await asyncio.sleep(0 if is_begun else TURN_PAUSE_S)
    while start < end:
        start = await _step(pool, kind)
        _show(f"{kind.name}s: {start:%F %H:%M} of {end:%F %H:%M}")
    _show("")


async def _step(pool: Pool, kind: Kind) -> datetime:
    """Do a step, unless somebody else is at it. Returns through when all is rolled up."""
    async with lease(pool) as connection:
        if not await step(connection, kind, await connection.fetchval("SELECT now()")):
            await asyncio.sleep(TURN_PAUSE_S)
        return (await rollup_state(connection, kind)).rolled_through


async def _rebuild_days(
    pool: Pool, kind: Kind, start: datetime, end: datetime, power_max_kw: float, devices: int
) -> None:
    while start < end:
        after, done = "", 0
        while True:
            async with lease(pool) as connection:
                some = await rebuild(connection, kind, after, start, power_max_kw)
            if some is None:
                await _step(pool, kind)
            elif some:
                after, done = some[-1], done + len(some)
                _show(f"{kind.name}s: {start:%F}, {done:,} of {devices:,} devices")
            else:
                break
        _show("")
        start = day_floor(start) + DAY


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; allowed: 2026-03-14 or 2026-03-14T15:00, in UTC"
        ) from None
    return instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)


def _show(line: str) -> None:
    """The progress, on one line that the next one replaces; nothing where nobody looks."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


def _say(line: str) -> None:
    print(line)  # noqa: T201 - what the command is for
