"""When a daemon is stalled, and what the database says about it from outside the pool."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from daemon.progress import ASK_AFTER_S, STALLED_AFTER_S, Progress
from dev.house import eventually
from dev.processes import free_port
from sql import outside
from sql.outside import is_free

NAME = "fleetwatt"
BEAT_S = 5.0


class Scene:
    """A writer and a database as `Progress` sees them, with a clock that the test turns."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.received_at_s: float | None = None
        self.sign_at_s = 0.0
        self.is_database_free = True
        self.questions = 0
        self.progress = Progress(self._oldest_age_s, lambda: self.sign_at_s, self._ask, lambda: self.now_s)

    def _oldest_age_s(self) -> float:
        return 0.0 if self.received_at_s is None else self.now_s - self.received_at_s

    async def _ask(self) -> bool:
        self.questions += 1
        return self.is_database_free

    def receive(self) -> None:
        """A reading arrives and waits."""
        self.received_at_s = self.now_s

    def give_sign(self) -> None:
        """The writer commits or is refused."""
        self.sign_at_s = self.now_s

    async def pass_time(self, seconds: float) -> str | None:
        """Beats follow each other for that long; what the last one said."""
        said = await self.progress.stall()
        for _ in range(int(seconds / BEAT_S)):
            self.now_s += BEAT_S
            said = await self.progress.stall()
        return said


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_daemon_that_receives_nothing_is_not_stalled(scene: Scene) -> None:
    assert await scene.pass_time(10 * STALLED_AFTER_S) is None
    assert scene.questions == 0


async def test_a_daemon_that_receives_and_gives_no_sign_is_stalled(scene: Scene) -> None:
    scene.receive()
    assert await scene.pass_time(STALLED_AFTER_S) is None
    said = await scene.pass_time(ASK_AFTER_S + 2 * BEAT_S)
    assert said == "for 80 s readings waited and nothing stored them, though the database is free"


async def test_a_sign_of_the_writer_ends_a_stall(scene: Scene) -> None:
    scene.receive()
    assert await scene.pass_time(2 * STALLED_AFTER_S)
    scene.give_sign()
    assert await scene.pass_time(STALLED_AFTER_S) is None
    assert await scene.pass_time(STALLED_AFTER_S)


async def test_signs_now_and_then_are_enough_however_old_the_oldest_reading_is(scene: Scene) -> None:
    scene.receive()
    for _ in range(10):
        scene.give_sign()
        assert await scene.pass_time(STALLED_AFTER_S - BEAT_S) is None


async def test_a_sign_between_two_beats_that_come_late_counts(scene: Scene) -> None:
    scene.receive()
    await scene.pass_time(STALLED_AFTER_S)
    scene.give_sign()
    scene.now_s += 2 * ASK_AFTER_S
    assert await scene.progress.stall() is None


async def test_the_database_is_not_asked_while_readings_are_young(scene: Scene) -> None:
    for _ in range(100):
        scene.receive()
        await scene.pass_time(ASK_AFTER_S)
    assert scene.questions == 0


async def test_a_daemon_without_its_database_is_not_stalled(scene: Scene) -> None:
    scene.receive()
    scene.is_database_free = False
    assert await scene.pass_time(10 * STALLED_AFTER_S) is None
    assert scene.questions > 0


async def test_after_an_outage_the_writer_has_its_time_to_come_back(scene: Scene) -> None:
    scene.receive()
    scene.is_database_free = False
    await scene.pass_time(10 * STALLED_AFTER_S)
    scene.is_database_free = True
    assert await scene.pass_time(STALLED_AFTER_S) is None
    assert await scene.pass_time(2 * BEAT_S)


async def test_a_single_no_of_the_database_begins_the_time_again(scene: Scene) -> None:
    scene.receive()
    await scene.pass_time(STALLED_AFTER_S)
    scene.is_database_free = False
    assert await scene.pass_time(0) is None
    scene.is_database_free = True
    assert await scene.pass_time(STALLED_AFTER_S) is None


@asynccontextmanager
async def session(database_url: str, name: str = NAME) -> AsyncIterator[asyncpg.Connection]:
    """A connection as one of the daemon's pool is."""
    connection = await asyncpg.connect(database_url, server_settings={"application_name": name})
    try:
        yield connection
    finally:
        await connection.close()


async def test_a_database_that_has_nothing_to_do_is_free(database_url: str) -> None:
    assert await is_free(database_url, NAME)


async def test_a_transaction_that_its_owner_forgot_leaves_the_database_free(database_url: str) -> None:
    async with session(database_url) as ours, ours.transaction():
        await ours.execute("LOCK TABLE meter_reading")
        assert await is_free(database_url, NAME)


async def test_a_copy_whose_sender_hangs_leaves_the_database_free(
    database_url: str, database: asyncpg.Connection
) -> None:
    ends = asyncio.Event()

    async def rows() -> AsyncIterator[bytes]:
        await ends.wait()
        yield b""

    async def has_begun() -> bool:
        active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND state = 'active'"
        return bool(await database.fetchval(active))

    async with session(database_url) as ours:
        copying = asyncio.create_task(ours.copy_to_table("meter_status", source=rows()))
        await eventually(has_begun)
        assert await is_free(database_url, NAME)
        ends.set()
        await copying


@pytest.mark.parametrize(("name", "free"), [(NAME, False), ("somebody", True)])
async def test_a_statement_of_ours_that_waits_for_a_lock_keeps_the_database_busy(
    database_url: str, database: asyncpg.Connection, name: str, *, free: bool
) -> None:
    async def waits() -> bool:
        return bool(await database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    async with session(database_url, name) as other:
        async with database.transaction():
            await database.execute("LOCK TABLE meter_reading")
            inserting = asyncio.create_task(other.execute("DELETE FROM meter_reading"))
            await eventually(waits)
            assert await is_free(database_url, NAME) is free
        await inserting


async def test_a_database_that_is_away_is_not_free() -> None:
    assert not await is_free(f"postgresql://nobody:x@127.0.0.1:{free_port()}/none", NAME)


async def test_a_database_that_refuses_the_connection_is_not_free(database_url: str) -> None:
    assert not await is_free(f"{database_url}_is_not_there", NAME)


async def test_a_database_that_says_nothing_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://nobody:x@127.0.0.1:{silent.getsockname()[1]}/none"
        assert not await is_free(url, NAME)
