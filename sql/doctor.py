"""What the doctor asks the database. All of it only reads, but for `take_rejection`."""

from datetime import datetime

import asyncpg
import msgspec

from sql.partitions import HISTORY_TABLES
from sql.queries import query

READ_AND_WRITE = ("SELECT", "INSERT")
NEEDED = {
    "meter_reading": READ_AND_WRITE,
    "vehicle_reading": READ_AND_WRITE,
    "meter_status": (*READ_AND_WRITE, "UPDATE"),
    "vehicle_status": (*READ_AND_WRITE, "UPDATE"),
    "rejection": (*READ_AND_WRITE, "UPDATE", "DELETE"),  # UPDATE for the locks of the purge
    **dict.fromkeys(
        ("meter_hour", "vehicle_hour", "meter_day", "vehicle_day", "meter_late", "vehicle_late"),
        (*READ_AND_WRITE, "DELETE"),
    ),
    "rollup_state": ("SELECT", "UPDATE"),
}
"""What the daemon does with its tables."""
OWNED = (*HISTORY_TABLES, "meter_hour", "vehicle_hour")
"""Those of which it makes and drops partitions."""


class Server(msgspec.Struct, frozen=True):
    """The server as one session sees it."""

    version: str
    version_number: int
    account: str
    is_superuser: bool
    database: str
    is_standby: bool
    is_read_only: bool
    time_zone: str
    clock: datetime
    address: str | None
    """None for a socket in the file system."""
    tls_version: str | None
    fsync: bool
    full_page_writes: bool
    synchronous_commit: str
    data_directory: str | None
    """None where the account may not know."""
    connections: int
    """How many this account may have while the others keep theirs."""


class Transaction(msgspec.Struct, frozen=True):
    """One that is open."""

    whose: str
    age_s: float


async def examine_server(connection: asyncpg.Connection) -> Server:
    """What kind of server it is."""
    return Server(**dict(await connection.fetchrow(query("examine_server"))))


async def list_missing_rights(connection: asyncpg.Connection) -> list[str]:
    """What the account would have to be granted, in words."""
    pairs = [(table, privilege) for table, privileges in NEEDED.items() for privilege in privileges]
    tables, privileges = zip(*pairs, strict=True)
    rows = await connection.fetch(query("examine_rights"), tables, privileges, OWNED)
    return [row["missing"] for row in rows]


async def measure_partitions(connection: asyncpg.Connection, table: str) -> dict[str, int]:
    """The partitions of a history table, with the bytes that each takes."""
    rows = await connection.fetch(query("examine_partitions"), table)
    return {row["partition"]: row["bytes"] for row in rows}


async def measure_database(connection: asyncpg.Connection) -> int:
    """The bytes that the whole database takes."""
    return int(await connection.fetchval("SELECT pg_database_size(current_database())"))


async def find_oldest_transaction(connection: asyncpg.Connection) -> Transaction | None:
    """The oldest one that is open, as far as the account may see; None where there is none."""
    row = await connection.fetchrow(query("examine_transactions"))
    return Transaction(**dict(row)) if row else None


async def count_recent_rejections(connection: asyncpg.Connection) -> dict[str, int]:
    """Rejections of the last day by reason, the most frequent first."""
    rows = await connection.fetch(query("count_recent_rejections"))
    return {row["reason"]: row["rejections"] for row in rows}


async def find_newest_rejection(connection: asyncpg.Connection) -> int:
    """The id of the newest rejection; what comes later has a higher one."""
    return int(await connection.fetchval(query("find_newest_rejection")))


async def take_rejection(connection: asyncpg.Connection, after_id: int, payload: bytes) -> bool:
    """Delete the rejection after `after_id` with exactly this payload; False where it is not there."""
    return bool(await connection.fetch(query("take_rejection"), after_id, payload))
