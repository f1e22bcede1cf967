"""`python -m daemon` runs the daemon; `migrate`, `check`, `leave`, `rejections` and `rollups` do what their help says.

Exit codes: 0 in good order, 1 something failed, 2 a setting is wrong.
"""

import argparse
import asyncio
import os
import sys

import asyncpg
import structlog
import uvloop

from daemon import check, rebuild, rejects, service
from daemon.settings import DaemonSettings
from daemon.spool_file import DamagedError, SpoolFileError
from daemon.status import LastProblem
from sql import logs
from sql.distribution import TABLES, check_cluster, find_places, has_rows, place
from sql.errors import DistributionError, SchemaError
from sql.migrate import migrate
from sql.pool import connect
from sql.settings import DatabaseSettings, SettingsError, read

log = structlog.get_logger("fleetwatt")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m daemon", description="From the broker to the table.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("run", help="run the daemon (what is done when no command is given)")
    migrating = commands.add_parser("migrate", help="bring the database's schema up to date")
    migrating.add_argument(
        "--distribute", action="store_true", help="and spread its tables over the workers of a Citus cluster"
    )
    commands.add_parser("leave", help="store what waits for this daemon at the broker, and end its session there")
    check.add_arguments(commands.add_parser("check", help="find what is wrong, and say what mends it"))
    rejects.add_arguments(
        commands.add_parser("rejections", aliases=["rejects"], help="list, show and replay what could not be stored")
    )
    rebuild.add_arguments(commands.add_parser("rollups", help="how far they are; make them anew"))
    chosen = parser.parse_args(arguments)
    try:
        match chosen.command:
            case "migrate":
                return _migrate(distributing=chosen.distribute)
            case "leave":
                return _run(leaving=True)
            case "check":
                return check.main(chosen)
            case "rejections" | "rejects":
                return rejects.main(chosen)
            case "rollups":
                return rebuild.main(chosen)
            case _:
                return _run()
    except SettingsError as error:
        print(f"fleetwatt: {error}", file=sys.stderr)  # noqa: T201 - a line for the technician, not a log record
        return 2


def _run(*, leaving: bool = False) -> int:
    settings = read(DaemonSettings, os.environ)
    last_problem = LastProblem()
    logs.configure(settings.log_format, settings.log_level, last_problem)
    code = 0
    try:
        uvloop.run(service.run(settings, last_problem, leaving=leaving))
    except* (DamagedError, SpoolFileError) as group:
        for error in group.exceptions:
            log.error("the daemon ends because of its spool; a start saves what can be read", error=str(error))
        code = 1
    return code


def _migrate(*, distributing: bool) -> int:
    settings = read(DatabaseSettings, os.environ)
    logs.configure(settings.log_format, settings.log_level)
    try:
        asyncio.run(_migrate_database(settings.database_url, distributing=distributing))
    except (SchemaError, DistributionError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        log.error("the schema was not migrated", error=str(error) or type(error).__name__)
        return 1
    return 0


async def _migrate_database(database_url: str, *, distributing: bool) -> None:
    connection = await connect(database_url, timeout=10)
    try:
        if distributing:
            await check_cluster(connection)
        applied = await migrate(connection)
        log.info("the schema is up to date", applied=[str(migration) for migration in applied])
        if distributing:
            await _distribute(connection)
    finally:
        await connection.close()


async def _distribute(connection: asyncpg.Connection) -> None:
    for placement in TABLES:
        places = await find_places(connection)
        if placement.where != places[placement.table].where and await has_rows(connection, placement.table):
            log.warning("the rows are being moved; whoever writes to the table waits", table=placement.table)
        is_new = await place(connection, placement)
        log.info("placed" if is_new else "there already", table=placement.table, kept=str(placement))


if __name__ == "__main__":
    sys.exit(main())
