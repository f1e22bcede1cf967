"""The database: from the connection to the forecast of its disk. It only reads."""

import asyncio
import math
import os
import re
import socket
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import asyncpg

from daemon.doctor.findings import Finding, failure, ok, skipped, warning
from daemon.maintenance import days_ahead
from daemon.service import POOL_CONNECTIONS_MAX
from sql import doctor, tls
from sql.distribution import is_distributed
from sql.doctor import Server
from sql.errors import SchemaError, sqlstate
from sql.migrate import verify
from sql.partitions import HISTORY_TABLES
from sql.pool import connect, has_own_session

CONNECT_TIMEOUT_S = 5.0
VERSION_MIN, VERSION_TESTED = 12, 15
"""12 has the first of what the schema needs (generated columns, attaching without a lock on the parent)."""
SIDECAR_CONNECTIONS = 10
CLOCK_DIFFERENCE_S_MAX = 2.0
TRANSACTION_S_MAX = 3600.0
GROWTH_DAYS = 7
DISK_DAYS_MIN = 7
MAINTENANCE_PATIENCE_S = 3.0
"""For how long a daemon that has just started may take to make the coming days."""
_GB = 1e9

_MIGRATE = "systemctl start fleetwatt-migrate, or: python -m daemon migrate"
_START = "start the database: systemctl start postgresql; or correct host and port in DATABASE_URL"
_CONNECT_REMEDIES = {
    "28P01": "put the right password into DATABASE_URL, or set it anew: ALTER ROLE ... PASSWORD",
    "28000": "let this account in from this machine: pg_hba.conf of the database, then SELECT pg_reload_conf()",
    "3D000": "create the database: sudo -u postgres createdb --owner fleetwatt fleetwatt; or correct DATABASE_URL",
    "53300": "raise max_connections, or see who has them: SELECT usename, count(*) FROM pg_stat_activity GROUP BY 1",
    "57P03": "wait until the database has started; its own log says what it does",
}
AFTER_CONNECT = (
    "tls", "version", "server", "role", "timezone", "clock", "connections", "durability",
)  # fmt: skip
AFTER_SCHEMA = ("rights", "partitions", "transactions", "disk", "rejections")


async def try_connect(database_url: str, application_name: str) -> tuple[Finding, asyncpg.Connection | None]:
    """Connect as the daemon does."""
    name = "database.connect"
    started_s = time.monotonic()
    try:
        connection = await connect(
            database_url,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=CONNECT_TIMEOUT_S,
            server_settings={"application_name": application_name, "timezone": "UTC"},
        )
        try:
            is_own = await has_own_session(connection)
        except BaseException:
            connection.terminate()
            raise
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        return failure(name, _explain(error), _find_remedy(error)), None
    took_ms = (time.monotonic() - started_s) * 1000
    way = "" if is_own else " through a pooler, which gives each transaction to a session of its own choice"
    return ok(name, f"connected{way} ({took_ms:.0f} ms)"), connection


def _explain(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"the database does not answer within {CONNECT_TIMEOUT_S:.0f} s"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens where DATABASE_URL says ({error})"
    if isinstance(error, socket.gaierror):
        return f"the host in DATABASE_URL has no address ({error.strerror})"
    return tls.explain(error, tls.DATABASE) or str(error) or type(error).__name__


def _find_remedy(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "open the database's port in the firewalls between, or correct host and port in DATABASE_URL"
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError | ValueError):
        return "correct DATABASE_URL"
    if "certificate" in str(error) or "SSL" in str(error):
        return "correct sslmode, sslrootcert, sslcert and sslkey in DATABASE_URL: docs/systemd.md"
    return _CONNECT_REMEDIES.get(sqlstate(error), _START)


async def examine_server(connection: asyncpg.Connection) -> tuple[Server, list[Finding]]:
    """What needs no schema."""
    asked_at = datetime.now(UTC)
    server = await doctor.examine_server(connection)
    difference_s = (server.clock - (asked_at + (datetime.now(UTC) - asked_at) / 2)).total_seconds()
    return server, [
        _judge_tls(server),
        judge_version(server.version_number, server.version),
        _judge_read_only(server),
        _judge_role(server),
        _judge_time_zone(server),
        judge_clock(difference_s),
        _judge_connections(server),
        _judge_durability(server),
    ]


def _judge_tls(server: Server) -> Finding:
    name = "database.tls"
    if server.tls_version:
        return ok(name, server.tls_version)
    if is_here(server):
        return ok(name, "not encrypted, and the database is on this machine")
    remedy = "put ?sslmode=verify-full&sslrootcert=/etc/fleetwatt/database-ca.crt at the end of DATABASE_URL"
    return warning(name, "not encrypted: readings can be read on the way", remedy)


def is_here(server: Server) -> bool:
    """Whether the database is on this machine for certain."""
    return server.address is None or server.address.startswith("127.") or server.address == "::1"


def judge_version(number: int, version: str) -> Finding:
    """The release of PostgreSQL; `number` as in server_version_num."""
    name, major = "database.version", number // 10000
    remedy = "upgrade the database (pg_upgrade); readings wait at the broker meanwhile"
    if major < VERSION_MIN:
        return failure(name, f"PostgreSQL {version}, and the schema needs {VERSION_MIN}", remedy)
    if major < VERSION_TESTED:
        return warning(name, f"PostgreSQL {version}, older than anything this was tried with", remedy)
    return ok(name, f"PostgreSQL {version}")


def _judge_read_only(server: Server) -> Finding:
    name = "database.server"
    if server.is_standby:
        remedy = "give DATABASE_URL the primary; with a standby of changing roles list both: HOST1,HOST2"
        return failure(name, "a standby, which stores nothing", remedy)
    if server.is_read_only:
        remedy = (
            f"ALTER DATABASE {server.database} RESET default_transaction_read_only; likewise ALTER ROLE "
            f"{server.account} RESET and ALTER SYSTEM RESET, whichever set it"
        )
        return failure(name, "read-only: default_transaction_read_only is on", remedy)
    return ok(name, "the primary, open for writing")


def _judge_role(server: Server) -> Finding:
    name = "database.role"
    if server.is_superuser:
        remedy = "give the daemon an account that only owns its database: docs/systemd.md, Installing"
        return warning(name, f"{server.account} is a superuser: whoever has its password has the whole server", remedy)
    return ok(name, f"{server.account}, no superuser")


def _judge_time_zone(server: Server) -> Finding:
    name = "database.timezone"
    if server.time_zone != "UTC":
        remedy = "let the pooler in between pass on the parameter TimeZone, or connect to the database itself"
        return warning(name, f"the session has {server.time_zone} where UTC was asked for", remedy)
    return ok(name, "UTC in the daemon's sessions")


def judge_clock(difference_s: float) -> Finding:
    """How far the database's clock is ahead of this machine's."""
    name = "database.clock"
    if abs(difference_s) > CLOCK_DIFFERENCE_S_MAX:
        which = "ahead of" if difference_s > 0 else "behind"
        text = f"the database's clock is {abs(difference_s):.1f} s {which} this machine's"
        return warning(name, text, "timedatectl set-ntp true, on both machines; timedatectl says which one is wrong")
    return ok(name, f"within {max(abs(difference_s), 0.01):.2f} s of this machine's")


def _judge_connections(server: Server) -> Finding:
    name, wanted = "database.connections", POOL_CONNECTIONS_MAX + SIDECAR_CONNECTIONS
    text = f"{server.connections} for this account; daemon and api take up to {wanted}"
    if server.connections < wanted:
        remedy = f"raise max_connections (ALTER SYSTEM SET, then restart), or the CONNECTION LIMIT of {server.account}"
        return warning(name, text, remedy)
    return ok(name, text)


def _judge_durability(server: Server) -> Finding:
    name = "database.durability"
    off = [
        setting for setting, on in (("fsync", server.fsync), ("full_page_writes", server.full_page_writes)) if not on
    ]
    off += ["synchronous_commit"] if server.synchronous_commit == "off" else []
    if off:
        remedy = "; ".join(f"ALTER SYSTEM SET {setting} = on" for setting in off) + "; SELECT pg_reload_conf()"
        return warning(name, f"{', '.join(off)} off: a commit can be lost when the machine fails", remedy)
    return ok(name, "a commit is on the disk")


async def examine_schema(connection: asyncpg.Connection) -> Finding:
    """Whether the schema is this program's."""
    try:
        await verify(connection)
    except SchemaError as error:
        text, _, told = str(error).partition("; ")
        return failure("database.schema", text, _MIGRATE if "daemon migrate" in told else told)
    except asyncpg.InsufficientPrivilegeError as error:
        return failure("database.schema", str(error), "let the account own its database: docs/systemd.md, Installing")
    return ok("database.schema", "up to date")


async def examine_rights(connection: asyncpg.Connection) -> Finding:
    """Whether the account may do what the daemon does."""
    missing = await doctor.list_missing_rights(connection)
    if not missing:
        return ok("database.rights", "all that the daemon needs")
    account = await connection.fetchval("SELECT quote_ident(current_user)")
    grants = [
        # OWNER of x: GRANT cannot give that.
        f"ALTER TABLE {what.removeprefix('OWNER of ')} OWNER TO {account}"
        if what.startswith("OWNER of ")
        else f"GRANT {what} TO {account}"
        for what in missing
    ]
    return failure("database.rights", f"missing: {', '.join(missing)}", "; ".join(grants))


async def examine_partitions(
    connection: asyncpg.Connection, today: date, *, daemon_runs: bool
) -> tuple[Finding, dict[date, int]]:
    """Whether the coming days are there, and the bytes of each day."""
    patience_ends_s = time.monotonic() + MAINTENANCE_PATIENCE_S
    while True:
        strange, missing, bytes_of = await _look_at_partitions(connection, today)
        if not (missing and daemon_runs and time.monotonic() < patience_ends_s):
            return _judge_partitions(strange, missing, today, daemon_runs=daemon_runs), bytes_of
        await asyncio.sleep(0.2)  # it may have started a moment ago


async def _look_at_partitions(
    connection: asyncpg.Connection, today: date
) -> tuple[list[str], set[date], dict[date, int]]:
    """What takes those out that are not the daemon's, the days that are missing, and the bytes of each."""
    strange: list[str] = []
    missing: set[date] = set()
    bytes_of: dict[date, int] = {}
    for table in HISTORY_TABLES:
        days = set()
        for partition, size in (await doctor.measure_partitions(connection, table)).items():
            day = _day_of(table, partition)
            if day is None:
                strange.append(f"ALTER TABLE {table} DETACH PARTITION {partition}")
            else:
                days.add(day)
                bytes_of[day] = bytes_of.get(day, 0) + size
        missing |= set(days_ahead(today)) - days
    return strange, missing, bytes_of


def _judge_partitions(strange: list[str], missing: set[date], today: date, *, daemon_runs: bool) -> Finding:
    name = "database.partitions"
    if strange:
        names = ", ".join(statement.rpartition(" ")[2] for statement in strange)
        text = f"partitions that are not the daemon's keep it from looking after the others: {names}"
        return failure(name, text, "; ".join(strange))
    if not missing:
        return ok(name, f"made through {days_ahead(today)[-1]}")
    text = f"missing: {', '.join(str(day) for day in sorted(missing))}"
    if daemon_runs:
        return failure(name, text, "see why its maintenance fails: journalctl -u fleetwatt-daemon -g maintenance")
    return warning(name, text, "start the daemon, which makes them: systemctl start fleetwatt-daemon")


def _day_of(table: str, partition: str) -> date | None:
    found = re.fullmatch(rf"{table}_(\d{{8}})", partition)
    try:
        return datetime.strptime(found[1], "%Y%m%d").replace(tzinfo=UTC).date() if found else None
    except ValueError:
        return None


async def examine_transactions(connection: asyncpg.Connection) -> Finding:
    """Whether vacuum is held up."""
    name = "database.transactions"
    oldest = await doctor.find_oldest_transaction(connection)
    if oldest and oldest.age_s > TRANSACTION_S_MAX:
        text = (
            f"{oldest.whose} has had a transaction open for {oldest.age_s / 3600:.1f} h: vacuum frees nothing meanwhile"
        )
        end = "ROLLBACK PREPARED 'ID'" if oldest.whose.startswith("prepared") else "SELECT pg_terminate_backend(PID)"
        return warning(name, text, f"end it: {end}")
    return ok(name, "none is open for long")


async def examine_disk(
    connection: asyncpg.Connection, server: Server, bytes_of: dict[date, int], today: date, retention_days: int
) -> Finding:
    """How the disk will fill."""
    if await is_distributed(connection):
        return skipped("database.disk", "the history is on workers, whose disks are not seen from here")
    full_days = [bytes_of[day] for n in range(1, GROWTH_DAYS + 1) if (day := today - timedelta(days=n)) in bytes_of]
    total = await doctor.measure_database(connection)
    free = await asyncio.to_thread(_free_bytes, server)
    growth = sum(full_days) / len(full_days) if full_days else None
    return forecast(total, sum(bytes_of.values()), growth, free, retention_days)


def _free_bytes(server: Server) -> int | None:
    if not is_here(server) or not server.data_directory or not Path(server.data_directory).is_absolute():
        return None
    try:
        disk = os.statvfs(server.data_directory)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


def forecast(total: int, history: int, growth: float | None, free: int | None, retention_days: int) -> Finding:
    """What the last full days' growth will come to; all but `retention_days` in bytes."""
    name = "database.disk"
    here = f"{_size(total)} now" + (f", {_size(free)} free" if free is not None else ", free disk unknown from here")
    if growth is None:
        return ok(name, f"{here}; no full day of history yet to forecast from")
    more = max(0.0, growth * retention_days - history) if retention_days else None
    text = f"{here}, {_size(growth)} more a day"
    text += f", {_size(total + more)} when RETENTION_DAYS are full" if more is not None else ", for ever"
    days = free / growth if free is not None and growth else math.inf
    if days < DISK_DAYS_MIN:
        remedy = "give the database a larger disk now, or keep fewer days: RETENTION_DAYS"
        return failure(name, f"{text}: full in {days:.1f} days", remedy)
    if days < math.inf and (more is None or days * growth < more):
        remedy = "give the database a larger disk, or keep fewer days: RETENTION_DAYS"
        return warning(name, f"{text}: full in {days:.0f} days", remedy)
    return ok(name, text)


def _size(size: float) -> str:
    return f"{size / _GB:.1f} GB" if size >= _GB else f"{size / 1e6:.1f} MB"


async def examine_rejections(connection: asyncpg.Connection) -> Finding:
    """What could not be stored of late."""
    found = await doctor.count_recent_rejections(connection)
    if not found:
        return ok("database.rejections", "none in the last 24 hours")
    text = ", ".join(f"{count} {reason}" for reason, count in found.items())
    return warning("database.rejections", f"in the last 24 hours: {text}", "python -m daemon rejections list")


def nothing_known(because: str, names: Sequence[str] = (*AFTER_CONNECT, "schema", *AFTER_SCHEMA)) -> list[Finding]:
    """The lines of what could not be examined."""
    return [skipped(f"database.{name}", because) for name in names]
