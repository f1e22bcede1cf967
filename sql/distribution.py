"""The tables spread over the nodes of a Citus cluster: `python -m daemon migrate --distribute`.

Rule: what devices send lives with its device, so that a batch is written, and a question about one device answered,
shard by shard. What such a question is joined with is small and lives on every node. What nobody joins with readings
stays on the coordinator, to which all clients connect.

Meters and vehicles are two groups. What joins them is a link, and no hash of an id follows that; apart, the shards of
one can be moved without those of the other.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import asyncpg
from msgspec import Struct

from sql.errors import DistributionError
from sql.migrate import wait_for_turn
from sql.queries import query

Where: TypeAlias = Literal["distributed", "reference", "local"]


class Placement(Struct, frozen=True):
    """Where the rows of a table are: by device on one node each, on every node, or on the coordinator."""

    table: str
    where: Where
    column: str | None = None
    """The device, by whose hash the rows are distributed."""
    beside: str | None = None
    """The table with whose shards its own are on one node."""

    def __str__(self) -> str:
        match self.where:
            case "distributed":
                return f"distributed by {self.column}{f' beside {self.beside}' if self.beside else ''}"
            case "reference":
                return "on every node"
            case _:
                return "on the coordinator"


TABLES = (
    Placement("meter_status", "distributed", "meter_id"),
    Placement("meter_reading", "distributed", "meter_id", "meter_status"),
    Placement("vehicle_status", "distributed", "vehicle_id"),
    Placement("vehicle_reading", "distributed", "vehicle_id", "vehicle_status"),
    Placement("meter_hour", "distributed", "meter_id", "meter_status"),
    Placement("meter_day", "distributed", "meter_id", "meter_status"),
    Placement("meter_late", "distributed", "meter_id", "meter_status"),
    Placement("vehicle_hour", "distributed", "vehicle_id", "vehicle_status"),
    Placement("vehicle_day", "distributed", "vehicle_id", "vehicle_status"),
    Placement("vehicle_late", "distributed", "vehicle_id", "vehicle_status"),
    # Joined with readings and live state wherever those are, changed rarely.
    Placement("device", "reference"),
    Placement("vehicle_meter_link", "reference"),
    # Joined with nothing. The purge takes row locks in an order of its own, which no distributed table has.
    Placement("rejection", "local"),
    # Locked by everybody who stores readings, on the node to which they connect.
    Placement("rollup_state", "local"),
    # Read and written by whoever migrates, before anything is distributed.
    Placement("schema_migration", "local"),
)
"""Every table of the schema; `beside` names one further up."""


class Place(Struct, frozen=True):
    """Where the rows of a table are now; tables of one `colocation` have their shards on the same nodes."""

    where: Where
    column: str | None = None
    colocation: int | None = None


async def check_cluster(connection: asyncpg.Connection) -> None:
    """Raise DistributionError unless the database is the coordinator's of a Citus cluster with workers."""
    if not await connection.fetchval(query("has_citus")):
        raise DistributionError(
            "the database has no extension citus; a superuser makes it, here and in the database of the same name on "
            "each worker, with: CREATE EXTENSION citus"
        )
    if not await connection.fetchval(query("count_workers")):
        raise DistributionError(
            "the coordinator knows no workers for this database; a superuser names it and each of them, with: "
            "SELECT citus_set_coordinator_host('HOST', 5432); SELECT citus_add_node('WORKER', 5432)"
        )


async def place(connection: asyncpg.Connection, placement: Placement) -> bool:
    """Put a table where it belongs, in one transaction; False where it is there already.

    Two that do it at once take turns. Rows that the table has are moved, and nobody writes to it meanwhile. Raises
    DistributionError where the table was distributed otherwise, or where the account may not.
    """
    async with connection.transaction():
        await wait_for_turn(connection)
        places = await find_places(connection)
        if _is_right(placement, places):
            return False
        if places[placement.table].where != "local":
            raise DistributionError(
                f"{placement.table} is {_described(placement, places)}, and should be {placement}; "
                f"to begin again with it: SELECT undistribute_table('{placement.table}')"
            )
        await _move(connection, placement)
    return True


async def find_places(connection: asyncpg.Connection) -> dict[str, Place]:
    """Where each table is now."""
    rows = await connection.fetch(query("find_places"), [placement.table for placement in TABLES])
    found = {row["name"]: Place(row["kept"], row["distributed_by"], row["colocation"]) for row in rows}
    return {placement.table: found.get(placement.table, Place("local")) for placement in TABLES}


async def is_distributed(connection: asyncpg.Connection) -> bool:
    """Whether the history is on workers."""
    if not await connection.fetchval(query("has_citus")):
        return False
    return (await find_places(connection))["meter_reading"].where == "distributed"


async def has_rows(connection: asyncpg.Connection, table: str) -> bool:
    """Whether there is anything to move."""
    return bool(await connection.fetchval(f"SELECT EXISTS (SELECT FROM {table})"))  # noqa: S608 - a name of ours


def _is_right(placement: Placement, places: Mapping[str, Place]) -> bool:
    place = places[placement.table]
    if (place.where, place.column) != (placement.where, placement.column):
        return False
    return placement.beside is None or place.colocation == places[placement.beside].colocation


def _described(placement: Placement, places: Mapping[str, Place]) -> str:
    place = places[placement.table]
    text = str(Placement(placement.table, place.where, place.column))
    is_apart = placement.beside and place.colocation != places[placement.beside].colocation
    return f"{text} apart from {placement.beside}" if is_apart else text


async def _move(connection: asyncpg.Connection, placement: Placement) -> None:
    try:
        if placement.where == "distributed":
            beside = placement.beside or "none"
            await connection.execute(query("distribute_table"), placement.table, placement.column, beside)
        else:
            await connection.execute(query("replicate_table"), placement.table)
        # What the coordinator had is on the nodes now. It would stay on the coordinator's disk, seen by nobody.
        await connection.execute(query("drop_local_rows"), placement.table)
    except asyncpg.InsufficientPrivilegeError as error:
        raise DistributionError(
            f"the account may not distribute {placement.table} ({error}); it takes the owner of the tables, and an "
            "account of the same name on each worker"
        ) from error
