"""The matrix: what happens, for how long, and how one sees that it did."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Literal, TypeAlias

from msgspec import Struct

from dev import harm
from dev.stage import Stage

Fault: TypeAlias = Callable[[Stage], AbstractAsyncContextManager[None]]


class Row(Struct, frozen=True, kw_only=True):
    """One fault of the matrix."""

    name: str
    what: str
    """A sentence for the page."""
    fault: Fault
    lasts_s: float = 0.0
    felt_as: str = ""
    """What the daemon's log or metrics must have of it, or the fault was none."""
    spools: bool = False
    """Whether readings must have gone through the spool."""
    disk_for: Literal["database", "wal", "spool"] | None = None
    settings: Mapping[str, str] = {}
    """Of the daemon."""
    broker_settings: Mapping[str, str] = {}
    patience_s: float = 90.0
    in_tests: bool = False
    """Whether `make test` runs it, too."""


def _network_rows(leg: harm.Leg, other: str, reset_every_s: float) -> tuple[Row, ...]:
    return (
        Row(
            name=f"{other}: network down",
            what="connections reset and refused for 4 s",
            fault=partial(harm.network_down, leg=leg),
            lasts_s=4,
            felt_as=f"{other} away",
        ),
        Row(
            name=f"{other}: black hole",
            what="for 5 s everything is swallowed and no connection ends; those of before stay dead",
            fault=partial(harm.network_set, leg=leg, black_hole=True),
            lasts_s=5,
            felt_as=f"{other} away",
        ),
        Row(
            name=f"{other}: latency",
            what="50 to 250 ms in each direction for 6 s",
            fault=partial(harm.network_set, leg=leg, latency_s=0.05, jitter_s=0.2),
            lasts_s=6,
        ),
        Row(
            name=f"{other}: resets",
            what=f"every connection ends with an RST every {reset_every_s:g} s, for 7 s",
            fault=partial(harm.network_resets, leg=leg, every_s=reset_every_s),
            lasts_s=7,
            felt_as=f"{other} away",
        ),
        Row(
            name=f"{other}: slow line",
            what="32 kB/s in each direction for 6 s, a third of what is published",
            fault=partial(harm.network_set, leg=leg, bytes_per_s=32_000),
            lasts_s=6,
        ),
        Row(
            name=f"{other}: cut in the middle",
            what="every connection is cut after 1 to 100 kB, for 6 s",
            fault=partial(harm.network_set, leg=leg, cut_after_bytes=(1_000, 100_000)),
            lasts_s=6,
            felt_as=f"{other} away",
            in_tests=leg == "to_database",
        ),
    )


MATRIX = (
    Row(
        name="daemon killed",
        what="kill -9, away for 2 s, started again",
        fault=harm.daemon_killed,
        lasts_s=2,
    ),
    Row(
        name="daemon killed ten times",
        what="kill -9 with readings in it that are not stored yet, and started again, ten times",
        fault=harm.daemon_killed_often,
        in_tests=True,
    ),
    Row(
        name="daemon stopped",
        what="SIGTERM, exit code 0 within 8 s, away for 2 s, started again",
        fault=harm.daemon_stopped,
        lasts_s=2,
        in_tests=True,
    ),
    Row(
        name="daemon frozen",
        what="SIGSTOP, and SIGCONT after 8 s",
        fault=harm.daemon_frozen,
        lasts_s=8,
    ),
    Row(
        name="daemon frozen for longer than the broker's patience",
        what="SIGSTOP, and SIGCONT after 60 s; the broker drops a client that is silent for 45 s",
        fault=harm.daemon_frozen,
        lasts_s=60,
        felt_as="broker away",
    ),
    Row(
        name="broker killed",
        what="kill -9, away for 2 s, started again",
        fault=partial(harm.broker_ended, how="kill"),
        lasts_s=2,
        felt_as="broker away",
        in_tests=True,
    ),
    Row(
        name="broker restarted",
        what="stopped in good order, away for 2 s, started again",
        fault=partial(harm.broker_ended, how="stop"),
        lasts_s=2,
        felt_as="broker away",
    ),
    Row(
        name="database killed",
        what="kill -9 of the postmaster, away for 1 s, started again",
        fault=partial(harm.database_ended, how="kill"),
        lasts_s=1,
        felt_as="database away",
        in_tests=True,
    ),
    Row(
        name="database restarted",
        what="stopped in good order, away for 5 s, started again",
        fault=partial(harm.database_ended, how="stop"),
        lasts_s=5,
        felt_as="database away",
        spools=True,
    ),
    Row(
        name="database frozen",
        what="SIGSTOP of each of its processes, and SIGCONT after 30 s",
        fault=harm.database_frozen,
        lasts_s=30,
        spools=True,
    ),
    Row(
        name="connections taken",
        what="other clients take every connection for 4 s, the daemon's are terminated",
        fault=harm.connections_taken,
        lasts_s=4,
        felt_as="53300",
        spools=True,
    ),
    Row(
        name="read-only",
        what="default_transaction_read_only on for 4 s, as after a failover",
        fault=partial(harm.server_set, setting="default_transaction_read_only", value="on"),
        lasts_s=4,
        felt_as="25006",
        spools=True,
        in_tests=True,
    ),
    Row(
        name="table locked",
        what="LOCK TABLE meter_reading IN ACCESS EXCLUSIVE MODE for 20 s",
        fault=harm.table_locked,
        lasts_s=20,
        spools=True,
    ),
    Row(
        name="statement timeout",
        what="statement_timeout of 1 ms for the role, its sessions terminated; the daemon's bring a limit of their own",
        fault=partial(harm.role_set, setting="statement_timeout", value="'1ms'"),
        lasts_s=4,
    ),
    Row(
        name="transaction timeout",
        what="transaction_timeout of 1 ms for the role, for 4 s: each transaction ends with its session",
        fault=partial(harm.role_set, setting="transaction_timeout", value="'1ms'"),
        lasts_s=4,
        felt_as="database away",
        spools=True,
    ),
    Row(
        name="statements cancelled",
        what="pg_cancel_backend on each of the daemon's sessions a hundred times a second, for 4 s",
        fault=harm.statements_cancelled,
        lasts_s=4,
        felt_as="57014",
    ),
    Row(
        name="role misconfigured",
        what="a search_path without the tables for the role, for 4 s; sessions of that time keep it",
        fault=partial(harm.role_set, setting="search_path", value="pg_catalog"),
        lasts_s=4,
        felt_as="the flow stands still",
    ),
    Row(
        name="database's disk full",
        what="the tablespace is on a disk without a byte left, for 6 s",
        fault=harm.disk_full,
        lasts_s=6,
        felt_as="53100",
        spools=True,
        disk_for="database",
        in_tests=True,
    ),
    Row(
        name="write-ahead log's disk full",
        what="the server panics, room is made after 5 s, it is started",
        fault=harm.wal_disk_full,
        lasts_s=5,
        felt_as="database away",
        spools=True,
        disk_for="wal",
    ),
    *_network_rows("to_broker", "broker", reset_every_s=2),
    *_network_rows("to_database", "database", reset_every_s=0.1),
    Row(
        name="database: answer to a commit lost",
        what="the commit happens, its answer does not arrive, the connection is lost",
        fault=partial(harm.network_set, leg="to_database", lose_answer_to=b"COMMIT"),
        lasts_s=2,
        felt_as="database away",
        in_tests=True,
    ),
    Row(
        name="database: transaction left open",
        what="a COMMIT is swallowed and its connection goes dead; the server waits for it with the rows locked",
        fault=partial(harm.network_set, leg="to_database", swallow_from=b"COMMIT"),
        lasts_s=2,
        felt_as="the database stays away",
        spools=True,
    ),
    Row(
        name="ten minutes without the database",
        what="600,000 messages come while it is away",
        fault=harm.ten_minutes_of_traffic,
        spools=True,
        patience_s=300,
    ),
    Row(
        name="daemon killed while spooling",
        what="the database is away; kill -9 three times while readings go to the spool",
        fault=harm.killed_while_spooling,
        spools=True,
        in_tests=True,
    ),
    Row(
        name="daemon killed while draining",
        what="100,000 messages in the spool, the database back; kill -9 three times while the spool is drained",
        fault=harm.killed_while_draining,
        spools=True,
    ),
    Row(
        name="daemon killed between spooling and draining",
        what="the database is away, readings are spooled, kill -9; the daemon comes back with the database",
        fault=harm.killed_between,
        spools=True,
        in_tests=True,
    ),
    Row(
        name="spool full",
        what="the database is away for 60,000 messages, the spool may take 1 MiB",
        fault=harm.spool_full,
        lasts_s=3,
        spools=True,
        settings={"SPOOL_BYTES_MAX": "1048576"},
    ),
    Row(
        name="spool's disk full",
        what="the database is away, and the disk below the spool has no byte left for 4 s",
        fault=harm.spool_disk_full,
        lasts_s=4,
        spools=True,
        disk_for="spool",
    ),
)

BEYOND = tuple(
    Row(
        name=f"beyond: daemon away and broker killed, {how}",
        what="two faults at once, which nobody promises anything about; here to be measured",
        fault=harm.daemon_away_and_broker_killed,
        broker_settings=settings,
        patience_s=10,
    )
    for how, settings in (
        ("as shipped", {}),
        ("saving at each change", {"autosave_on_changes": "true", "autosave_interval": "1"}),
    )
)
"""Run only when asked for by name, since readings are lost here."""
