"""What can be done to a stage.

Each is an asynchronous context manager: it begins before its block and has ended after it, and the load goes on all the
while. Some have more to do than to wait for the end of the block, and take their time for it.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, TypeAlias

import asyncpg

from dev.house import eventually
from dev.load import PER_S
from dev.network import Network
from dev.stage import DATABASE, ROLE, Stage

Leg: TypeAlias = Literal["to_broker", "to_database"]
UNANSWERED = (OSError, EOFError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What a database that is not there answers with."""


class FaultError(Exception):
    """A fault could not be made to happen."""


# The daemon.


@asynccontextmanager
async def daemon_killed(stage: Stage) -> AsyncIterator[None]:
    """Killed, away for the time of the block, and started again."""
    await asyncio.to_thread(stage.daemon.kill)
    try:
        yield
    finally:
        await stage.start_daemon()


@asynccontextmanager
async def daemon_killed_often(stage: Stage) -> AsyncIterator[None]:
    """Killed ten times, each time with readings in it that are not stored: somebody locks the table before."""
    for _ in range(10):
        await _commits_go_on(stage)
        async with table_locked(stage):
            await stage.load.more(PER_S // 5)
            await asyncio.to_thread(stage.daemon.kill)
        await stage.start_daemon()
    yield


@asynccontextmanager
async def daemon_stopped(stage: Stage) -> AsyncIterator[None]:
    """Stopped by SIGTERM as a service manager does it."""
    code = await asyncio.to_thread(stage.daemon.stop, 8)
    if code != 0:
        raise FaultError(f"the daemon ended with {code} on SIGTERM")
    try:
        yield
    finally:
        await stage.start_daemon()


@asynccontextmanager
async def daemon_frozen(stage: Stage) -> AsyncIterator[None]:
    """SIGSTOP, SIGCONT."""
    stage.daemon.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        stage.daemon.signal(signal.SIGCONT)


# The broker.


@asynccontextmanager
async def broker_ended(stage: Stage, how: str) -> AsyncIterator[None]:
    """Stopped or killed, away, and started again."""
    await asyncio.to_thread(getattr(stage.house.broker.process, how))
    try:
        yield
    finally:
        await asyncio.to_thread(stage.house.broker.start)


@asynccontextmanager
async def daemon_away_and_broker_killed(stage: Stage) -> AsyncIterator[None]:
    """The daemon is killed, and 8 s later the broker, which keeps the daemon's messages."""
    async with daemon_killed(stage):
        await asyncio.sleep(8)
        async with broker_ended(stage, "kill"):
            yield


# The database.


@asynccontextmanager
async def database_ended(stage: Stage, how: str) -> AsyncIterator[None]:
    """Stopped or killed, away, and started again."""
    await asyncio.to_thread(getattr(stage.server.postgres.process, how))
    try:
        yield
    finally:
        await asyncio.to_thread(stage.server.postgres.start)


@asynccontextmanager
async def database_frozen(stage: Stage) -> AsyncIterator[None]:
    """SIGSTOP and SIGCONT to each of its processes: connections stay open, and nobody answers."""
    stage.server.signal_all(signal.SIGSTOP)
    try:
        yield
    finally:
        stage.server.signal_all(signal.SIGCONT)


@asynccontextmanager
async def connections_taken(stage: Stage) -> AsyncIterator[None]:
    """Others take every connection, the daemon's included."""
    others: list[asyncpg.Connection] = []
    try:
        while True:
            try:
                others.append(await asyncpg.connect(stage.server.url_of_role("postgres")))
            except asyncpg.TooManyConnectionsError:
                if not await _terminate_daemons_sessions(stage):
                    break
        yield
    finally:
        for connection in others:
            await connection.close()


@asynccontextmanager
async def server_set(stage: Stage, setting: str, value: str) -> AsyncIterator[None]:
    """A setting of the whole server, which sessions that are open take over as well."""
    await stage.server.run(f"ALTER SYSTEM SET {setting} = {value}", "SELECT pg_reload_conf()")
    try:
        yield
    finally:
        await stage.server.run(f"ALTER SYSTEM RESET {setting}", "SELECT pg_reload_conf()")


@asynccontextmanager
async def role_set(stage: Stage, setting: str, value: str) -> AsyncIterator[None]:
    """A setting of the daemon's role. A session that began with it keeps it to its end."""
    role = f"ALTER ROLE {ROLE} IN DATABASE {DATABASE}"
    await stage.server.run(f"{role} SET {setting} = {value}")
    await _terminate_daemons_sessions(stage)
    try:
        yield
    finally:
        await stage.server.run(f"{role} RESET {setting}")


@asynccontextmanager
async def statements_cancelled(stage: Stage) -> AsyncIterator[None]:
    """Whatever the daemon asks of the database is cancelled, a hundred times a second."""

    async def again_and_again() -> None:
        connection = await asyncpg.connect(stage.database_url)
        try:
            while True:
                await connection.execute(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND usename = $2",
                    *(DATABASE, ROLE),
                )
                await asyncio.sleep(0.01)
        finally:
            await connection.close()

    cancelling = asyncio.create_task(again_and_again(), name="cancel statements")
    try:
        yield
    finally:
        await _end(cancelling)


@asynccontextmanager
async def table_locked(stage: Stage) -> AsyncIterator[None]:
    """Somebody holds a lock on a table that nothing gets past."""
    connection = await asyncpg.connect(stage.database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE meter_reading IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


@asynccontextmanager
async def disk_full(stage: Stage) -> AsyncIterator[None]:
    """The small disk has no byte left."""
    stage.disk.fill()
    try:
        yield
    finally:
        stage.disk.free()


@asynccontextmanager
async def wal_disk_full(stage: Stage) -> AsyncIterator[None]:
    """The disk of the write-ahead log has no byte left: the server panics. An operator makes room and starts it."""
    stage.disk.fill()
    with contextlib.suppress(*UNANSWERED):
        for _ in range(20):  # until the segments that are there are used up
            await stage.server.run("SELECT pg_switch_wal()")
            await asyncio.sleep(0.1)
    try:
        yield
    finally:
        stage.disk.free()
        if not stage.server.postgres.process.is_running:
            await asyncio.to_thread(stage.server.postgres.start)


# The network.


def _network(stage: Stage, leg: Leg) -> Network:
    return stage.to_broker if leg == "to_broker" else stage.to_database


@asynccontextmanager
async def network_down(stage: Stage, leg: Leg) -> AsyncIterator[None]:
    """Connections are reset, new ones refused."""
    network = _network(stage, leg)
    await asyncio.to_thread(network.down)
    try:
        yield
    finally:
        await asyncio.to_thread(network.up)


@asynccontextmanager
async def network_set(stage: Stage, leg: Leg, **values: object) -> AsyncIterator[None]:
    """Some attributes of a network, and afterwards what they were."""
    network = _network(stage, leg)
    before = {name: getattr(network, name) for name in values}
    for name, value in values.items():
        setattr(network, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(network, name, value)


@asynccontextmanager
async def network_resets(stage: Stage, leg: Leg, every_s: float) -> AsyncIterator[None]:
    """Again and again each connection ends with an RST."""

    async def again_and_again() -> None:
        while True:
            await asyncio.to_thread(_network(stage, leg).reset)
            await asyncio.sleep(every_s)

    resetting = asyncio.create_task(again_and_again(), name="resets")
    try:
        yield
    finally:
        await _end(resetting)


# The spool.


@asynccontextmanager
async def ten_minutes_of_traffic(stage: Stage) -> AsyncIterator[None]:
    """The database is away while as much comes as in ten minutes, as fast as the broker takes it."""
    async with database_ended(stage, "stop"):
        await stage.load.at_once(600 * PER_S)
        yield


@asynccontextmanager
async def killed_while_spooling(stage: Stage) -> AsyncIterator[None]:
    """The database is away; the daemon is killed three times while it writes to the spool."""
    async with database_ended(stage, "stop"):
        for _ in range(3):
            await _spool_grows(stage, 2 * PER_S)
            await asyncio.to_thread(stage.daemon.kill)
            await stage.start_daemon()
        yield


@asynccontextmanager
async def killed_while_draining(stage: Stage) -> AsyncIterator[None]:
    """The spool holds a minute and more; the daemon is killed three times while it drains that."""
    async with database_ended(stage, "stop"):
        await stage.load.at_once(100 * PER_S)
        await _spool_holds(stage, 100 * PER_S)
    for _ in range(3):
        await _spool_shrinks(stage)
        await asyncio.to_thread(stage.daemon.kill)
        await stage.start_daemon()
    yield


@asynccontextmanager
async def killed_between(stage: Stage) -> AsyncIterator[None]:
    """The database is away; the daemon spools, is killed, and comes back with the database."""
    async with database_ended(stage, "stop"):
        await _spool_grows(stage, 2 * PER_S)
        await asyncio.to_thread(stage.daemon.kill)
    await stage.start_daemon()
    yield


@asynccontextmanager
async def spool_full(stage: Stage) -> AsyncIterator[None]:
    """The database is away for longer than the spool has room."""
    async with database_ended(stage, "stop"):
        await stage.load.at_once(60 * PER_S)
        yield


@asynccontextmanager
async def spool_disk_full(stage: Stage) -> AsyncIterator[None]:
    """The database is away, and the disk below the spool fills up while readings go there."""
    async with database_ended(stage, "stop"):
        await _spool_grows(stage, PER_S)
        async with disk_full(stage):
            yield


# What is waited for, so that a fault comes at its moment.


async def _commits_go_on(stage: Stage) -> None:
    """Wait until this daemon has stored something."""

    async def stored_something() -> bool:
        try:
            return (await asyncio.to_thread(stage.house.books)).settled > 0
        except OSError:
            return False

    await eventually(stored_something)


async def _spool_grows(stage: Stage, readings: int) -> None:
    """Wait until that many more readings are in the spool."""
    await _spool_holds(stage, await stage.spooled() + readings)


async def _spool_holds(stage: Stage, readings: int) -> None:
    """Wait until that many readings are in the spool."""

    async def holds() -> bool:
        return await stage.spooled() >= readings

    await eventually(holds)


async def _spool_shrinks(stage: Stage) -> None:
    """Wait until some of the spool has been drained since this daemon's start."""
    before = await stage.spooled()
    if not before:
        raise FaultError("the spool was empty before the daemon could be killed while draining it")

    async def shrunk() -> bool:
        return await stage.spooled() < before

    await eventually(shrunk)


async def _terminate_daemons_sessions(stage: Stage) -> int:
    """End them, and return how many there were."""
    terminated = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1 AND usename = $2"
    return int(await stage.server.value(terminated, DATABASE, ROLE))


async def _end(task: asyncio.Task[None]) -> None:
    """Stop what would go on for ever; an error that stopped it before is raised."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
