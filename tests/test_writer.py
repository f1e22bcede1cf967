"""The writer with a real database: what it stores, what it keeps back, and when it acknowledges.

The session is the only part that is not real: it notes the acknowledgements instead of sending them.
"""

import asyncio
import contextlib
import functools
import json
import random
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import urlsplit

import asyncpg
import pytest
import structlog
from mqtt5 import PublishPacket, QoS
from structlog.testing import LogCapture

from daemon import outage as outage_module
from daemon import settle as settle_module
from daemon.accounts import Accounts
from daemon.batch import Batch, Batches
from daemon.metrics import Metrics
from daemon.outage import Outage
from daemon.readings import Rules
from daemon.service import Intake
from daemon.settle import Settler
from daemon.spool import Spool
from daemon.subscriber import Session
from daemon.writer import Writer
from dev.house import eventually
from dev.network import Network
from dev.postgres import BINARIES
from sql.flood import Flood
from sql.pool import Pool, lease, open_pool
from tests.conftest import Connect

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
KEEP_FOR_EVER = Rules(clock_ahead_max=timedelta(minutes=5), retention=None)
ROWS_MAX = 500
SPOOL_AFTER_S = 0.3

Message = tuple[str, bytes]


def meter(device: str, minute: float = 0, kwh: float = 1.0) -> Message:
    ts = (NOON + timedelta(minutes=minute)).isoformat()
    return f"meters/{device}/reading", json.dumps({"kwhConsumedAc": kwh, "voltage": 230, "timestamp": ts}).encode()


def vehicle(device: str, minute: float = 0, kwh: float = 1.0) -> Message:
    ts = (NOON + timedelta(minutes=minute)).isoformat()
    fields = {"soc": 50, "kwhDeliveredDc": kwh, "batteryTemp": 20, "timestamp": ts}
    return f"vehicles/{device}/reading", json.dumps(fields).encode()


class NotingSession:
    """Notes what it is told to acknowledge, and what `look` sees in that moment."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        self.seen: list[int] = []
        self.look: Callable[[], int] = lambda: 0

    def acknowledge(self, packet_ids: list[int]) -> None:
        self.acknowledged += packet_ids
        self.seen.append(self.look())


class Desk:
    """A writer at work, and all that is around it."""

    def __init__(self, pool: Pool, spool: Spool | None = None, spool_after_s: float = SPOOL_AFTER_S) -> None:
        self.accounts = Accounts()
        self.batches = Batches(ROWS_MAX, 0.005, time.monotonic)
        self.metrics = Metrics(self.accounts, self.batches.oldest_age_s)
        self.session = NotingSession()
        self.settled = 0
        self.outage = Outage()
        self.flood = Flood(0, self.metrics.rejections_not_kept)
        self.settler = Settler(pool, self.outage, self.flood, self.metrics)
        self.writer = Writer(
            self.batches,
            self.settler,
            self.outage,
            self.accounts,
            self._committed,
            self._count,
            spool,
            spool_after_s,
        )
        self._intake = Intake(KEEP_FOR_EVER, self.batches, self.accounts, self.flood, 1_000_000)
        self.sent = 0

    def _count(self) -> None:
        self.settled += 1

    def _committed(self, batch: Batch, started_at_s: float) -> None:
        self.metrics.batch_settled(batch, started_at_s, time.monotonic())

    def deliver(self, *messages: Message, session: NotingSession | None = None) -> None:
        """What one read from the socket brought; the packet ids go on from 1."""
        packets = []
        for topic, payload in messages:
            self.sent += 1
            packets.append(PublishPacket(topic, payload, qos=QoS.AT_LEAST_ONCE, packet_id=self.sent))
        self._intake.take(cast(Session, session or self.session), packets)

    @property
    def all_sent(self) -> list[int]:
        """The packet ids of everything that was delivered, in order."""
        return list(range(1, self.sent + 1))

    async def all_acknowledged(self) -> None:
        """Wait until the session has heard of everything."""
        await eventually(self._is_idle, 20)
        assert self.session.acknowledged == self.all_sent

    async def _is_idle(self) -> bool:
        return not self.accounts.in_flight

    def books(self) -> dict[str, int]:
        """What became of the readings, without what did not occur."""
        books = {
            "stored": self.accounts.stored.total(),
            "duplicate": self.accounts.duplicate.total(),
            **self.accounts.rejected,
        }
        return {name: count for name, count in books.items() if count}


@asynccontextmanager
async def at_work(pool: Pool, spool: Spool | None = None, spool_after_s: float = SPOOL_AFTER_S) -> AsyncIterator[Desk]:
    """A desk whose writer runs for the time of the block; looks at the books all the while, and at the end."""
    desk = Desk(pool, spool, spool_after_s)
    writing = asyncio.create_task(desk.writer.run(), name="writer")
    auditing = asyncio.create_task(_audit(desk.accounts), name="audit")
    try:
        yield desk
        desk.batches.close()
        async with asyncio.timeout(20):
            await writing
        assert desk.accounts.in_flight == 0
        assert desk.accounts.unaccounted == 0
    finally:
        for task in (writing, auditing):
            task.cancel()
        await asyncio.wait([writing, auditing])
        if not auditing.cancelled():
            auditing.result()


async def _audit(accounts: Accounts) -> None:
    """The identity holds at each moment, and not only at the end."""
    while True:
        assert accounts.unaccounted == 0
        assert accounts.in_flight >= 0
        await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outages of a test are short, so the waits between two tries are as well."""
    monkeypatch.setattr(settle_module, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(settle_module, "LONGEST_RETRY_S", 0.05)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """What the writer logs."""
    capture = LogCapture()
    logger = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger("debug")
    )
    monkeypatch.setattr(outage_module, "log", logger)
    return cast(list[Mapping[str, Any]], capture.entries)


@pytest.fixture
async def desk(pool: Pool) -> AsyncIterator[Desk]:
    async with at_work(pool) as desk:
        yield desk


async def devices(connection: asyncpg.Connection, kind: str = "meter") -> list[str]:
    rows = await connection.fetch(f"SELECT {kind}_id AS device FROM {kind}_reading ORDER BY 1")
    return [row["device"] for row in rows]


async def rejections(connection: asyncpg.Connection) -> list[tuple[str, str, bytes]]:
    rows = await connection.fetch("SELECT topic, reason, payload FROM rejection ORDER BY id")
    return [tuple(row) for row in rows]


async def end_sessions(connection: asyncpg.Connection) -> int:
    """Kill every other connection to this database; returns how many there were."""
    killed = await connection.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    return len(killed)


async def tries(desk: Desk, sqlstate: str, count: int = 3) -> None:
    """Wait until the slow way has failed so often with this error."""

    async def tried() -> bool:
        labels = {"sqlstate": sqlstate}
        return (desk.metrics.registry.get_sample_value("fleetwatt_database_errors_total", labels) or 0) >= count

    await eventually(tried, 20)


# The ordinary way.


async def test_readings_are_acknowledged_in_the_order_of_their_arrival(
    desk: Desk, database: asyncpg.Connection
) -> None:
    for n in range(20):
        desk.deliver(meter("m2", n), vehicle("v1", n), meter("m1", n))
        await asyncio.sleep(0)
    await desk.all_acknowledged()

    assert desk.books() == {"stored": 60}
    assert await devices(database) == ["m1"] * 20 + ["m2"] * 20
    assert await devices(database, "vehicle") == ["v1"] * 20


async def test_nothing_is_acknowledged_before_another_session_can_see_it(desk: Desk, database_url: str) -> None:
    question = "SELECT (SELECT count(*) FROM meter_reading) + (SELECT count(*) FROM vehicle_reading)"

    def look() -> int:
        answer = subprocess.run(
            [BINARIES / "psql", database_url, "-XAtc", question], capture_output=True, text=True, check=True
        )
        return int(answer.stdout)

    desk.session.look = look
    for n in range(4):
        desk.deliver(meter("m1", n), vehicle("v1", n))
        await desk.all_acknowledged()
    assert desk.session.seen == [2, 4, 6, 8]


async def test_each_batch_is_acknowledged_on_the_session_that_brought_it(desk: Desk) -> None:
    other = NotingSession()
    desk.deliver(meter("m1", 1), meter("m1", 2))
    desk.deliver(meter("m1", 3), session=other)
    desk.deliver(meter("m1", 4))
    await eventually(desk._is_idle, 20)
    assert (desk.session.acknowledged, other.acknowledged) == ([1, 2, 4], [3])


async def test_the_kinds_of_a_batch_are_written_at_once_and_acknowledged_together(
    desk: Desk, database: asyncpg.Connection, database_url: str, connected: Connect
) -> None:
    async def meters_are_stored() -> bool:
        return await devices(database) == ["m1"]

    locker = await connected(database_url)
    async with locker.transaction():
        await locker.execute("LOCK TABLE vehicle_status")
        desk.deliver(vehicle("v1"), meter("m1"))
        await eventually(meters_are_stored)
        assert desk.session.acknowledged == []
        assert desk.books() == {}

    await desk.all_acknowledged()
    assert desk.books() == {"stored": 2}


async def test_what_came_is_written_before_the_end(pool: Pool, database: asyncpg.Connection) -> None:
    async with at_work(pool) as desk:
        for n in range(3 * ROWS_MAX):
            desk.deliver(meter(f"m{n}"))
    assert desk.session.acknowledged == desk.all_sent
    assert len(await devices(database)) == 3 * ROWS_MAX


async def test_room_is_announced_after_each_batch(desk: Desk) -> None:
    for n in range(3):
        desk.deliver(meter("m1", n))
        await desk.all_acknowledged()
    assert desk.settled == 3


async def test_a_commit_leaves_its_time(desk: Desk) -> None:
    before_s = time.monotonic()
    desk.deliver(meter("m1"))
    await desk.all_acknowledged()
    assert before_s <= desk.outage.last_commit_at_s <= time.monotonic()


# Readings that are not new, and readings that cannot be stored.


async def test_a_batch_that_comes_again_counts_as_duplicate_and_changes_nothing(
    desk: Desk, database: asyncpg.Connection
) -> None:
    messages = [meter("m1"), vehicle("v1"), meter("m2", 1)]
    desk.deliver(*messages)
    await desk.all_acknowledged()
    before = (
        await database.fetch("SELECT * FROM meter_reading ORDER BY meter_id"),
        await database.fetch("SELECT * FROM meter_status ORDER BY meter_id"),
    )

    desk.deliver(*messages)
    desk.deliver(*messages)
    await desk.all_acknowledged()

    assert desk.books() == {"stored": 3, "duplicate": 6}
    assert before == (
        await database.fetch("SELECT * FROM meter_reading ORDER BY meter_id"),
        await database.fetch("SELECT * FROM meter_status ORDER BY meter_id"),
    )


async def test_a_batch_that_is_partly_new_is_sorted_out(desk: Desk, database: asyncpg.Connection) -> None:
    desk.deliver(meter("m1"), meter("m3"))
    await desk.all_acknowledged()
    desk.deliver(meter("m1"), meter("m2"), meter("m3"), meter("m4"), meter("m4"))
    await desk.all_acknowledged()
    assert desk.books() == {"stored": 4, "duplicate": 3}
    assert await devices(database) == ["m1", "m2", "m3", "m4"]


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in two batches"])
async def test_a_conflict_is_kept_with_its_bytes_and_the_first_reading_stays(
    desk: Desk, database: asyncpg.Connection, together: bool
) -> None:
    first, second = meter("m1", kwh=1.25), meter("m1", kwh=2.5)
    desk.deliver(first)
    if not together:
        await desk.all_acknowledged()
    desk.deliver(second, meter("m2"))
    await desk.all_acknowledged()

    assert desk.books() == {"stored": 2, "conflict": 1}
    assert await rejections(database) == [(second[0], "conflict", second[1])]
    detail = await database.fetchval("SELECT detail FROM rejection")
    assert detail == "m1 has another reading at 2024-05-01T12:00:00+00:00, with other values; the first one stays"
    assert await database.fetchval("SELECT kwh_consumed_ac FROM meter_status WHERE meter_id = 'm1'") == 1.25


async def test_of_an_array_the_element_in_conflict_is_kept_alone(desk: Desk, database: asyncpg.Connection) -> None:
    elements = [meter("m1", minute, kwh)[1] for minute, kwh in [(0, 1.0), (1, 1.0), (0, 9.0)]]
    desk.deliver(("meters/m1/reading", b"[" + b", ".join(elements) + b"]"))
    await desk.all_acknowledged()
    assert desk.books() == {"stored": 2, "conflict": 1}
    assert await rejections(database) == [("meters/m1/reading", "conflict", elements[2])]


@pytest.mark.parametrize(
    ("payload", "books"),
    [
        (b"garbage", {"malformed_json": 1}),
        (b'[{"voltage": 230}]', {"missing_field": 1}),
        (b'[{"voltage": 230}, 7]', {"missing_field": 1, "wrong_type": 1}),
        (b"[]", {"missing_field": 1}),
    ],
)
async def test_a_message_without_one_good_reading_does_not_stop_the_flow(
    desk: Desk, database: asyncpg.Connection, payload: bytes, books: dict[str, int]
) -> None:
    desk.deliver(("meters/m1/reading", payload))
    await desk.all_acknowledged()
    assert desk.books() == books
    assert {reason for _, reason, _ in await rejections(database)} == set(books)

    desk.deliver(meter("m1"))
    await desk.all_acknowledged()
    assert desk.books() == {**books, "stored": 1}


REFUSALS = {
    "a constraint": "ALTER TABLE meter_reading ADD CHECK (meter_id NOT LIKE 'bad%')",
    "a constraint on live state": "ALTER TABLE meter_status ADD CHECK (meter_id NOT LIKE 'bad%')",
    "a trigger": """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.meter_id LIKE 'bad%' THEN
                RAISE EXCEPTION 'not this one' USING ERRCODE = 'data_exception';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON meter_reading FOR EACH ROW EXECUTE FUNCTION refuse()
        """,
    "a trigger at the commit": """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.meter_id LIKE 'bad%' THEN
                RAISE EXCEPTION 'not this one' USING ERRCODE = 'check_violation';
            END IF;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON meter_reading
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()
        """,
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
async def test_a_row_that_the_database_refuses_is_kept_alone_and_its_neighbours_are_stored(
    desk: Desk, database: asyncpg.Connection, refusal: str
) -> None:
    await database.execute(refusal)
    good = [meter(f"m{n:03}") for n in range(100)]
    bad = [meter("bad1"), meter("bad2")]

    desk.deliver(*good[:30], bad[0], *good[30:], bad[1], vehicle("v1"))
    await desk.all_acknowledged()

    assert desk.books() == {"stored": 101, "refused_by_database": 2}
    assert await devices(database) == [f"m{n:03}" for n in range(100)]
    assert sorted(await rejections(database)) == [(topic, "refused_by_database", body) for topic, body in bad]
    assert await database.fetchval("SELECT count(*) FROM meter_status") == 100


async def test_what_the_database_says_of_a_refused_row_is_kept(desk: Desk, database: asyncpg.Connection) -> None:
    await database.execute("ALTER TABLE meter_reading ADD CONSTRAINT no_bad_ones CHECK (meter_id <> 'bad')")
    desk.deliver(meter("bad"))
    await desk.all_acknowledged()
    detail = await database.fetchval("SELECT detail FROM rejection")
    assert detail.startswith("23514: ")
    assert "no_bad_ones" in detail


# A database that does not do its work.


@pytest.mark.parametrize("table", ["meter_reading", "meter_status"])
async def test_a_missing_table_stops_the_flow_loudly_until_it_is_back(
    desk: Desk, database: asyncpg.Connection, logged: list[Mapping[str, Any]], table: str
) -> None:
    await database.execute(f"ALTER TABLE {table} RENAME TO elsewhere")
    desk.deliver(meter("m1"), vehicle("v1"))
    desk.deliver(meter("m2"))
    await tries(desk, "42P01")
    assert desk.session.acknowledged == []
    assert desk.books() == {}

    await database.execute(f"ALTER TABLE elsewhere RENAME TO {table}")
    await desk.all_acknowledged()

    assert desk.books() == {"stored": 3}
    assert await devices(database) == ["m1", "m2"]
    (error,) = [entry for entry in logged if entry["log_level"] == "error"]
    assert error["event"] == "database refuses to store, the flow stands still until this is mended"
    assert error["sqlstate"] == "42P01"
    assert table in error["error"]
    assert logged[-1]["event"] == "database back"


async def test_rejections_wait_for_their_table_like_readings(desk: Desk, database: asyncpg.Connection) -> None:
    await database.execute("ALTER TABLE rejection RENAME TO elsewhere")
    desk.deliver(meter("m1"), ("meters/m1/reading", b"garbage"))
    await tries(desk, "42P01")
    assert desk.session.acknowledged == []

    await database.execute("ALTER TABLE elsewhere RENAME TO rejection")
    await desk.all_acknowledged()
    assert desk.books() == {"stored": 1, "malformed_json": 1}
    assert len(await rejections(database)) == 1


async def test_an_outage_that_changes_its_nature_is_said_again(
    desk: Desk, database: asyncpg.Connection, logged: list[Mapping[str, Any]]
) -> None:
    await database.execute("ALTER TABLE meter_reading RENAME TO elsewhere")
    desk.deliver(meter("m1"))
    await tries(desk, "42P01")
    await read_only(database, True)
    await tries(desk, "25006")
    await read_only(database, False)
    await database.execute("ALTER TABLE elsewhere RENAME TO meter_reading")
    await desk.all_acknowledged()
    assert {"error", "warning"} <= {entry["log_level"] for entry in logged}


async def read_only(database: asyncpg.Connection, on: bool) -> None:
    """Make the server behave as one that was demoted, or promoted again; sessions keep what they began with."""
    name = await database.fetchval("SELECT current_database()")
    await database.execute("SET default_transaction_read_only = off")
    await database.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {'on' if on else 'off'}")
    if on:
        await end_sessions(database)


async def test_a_server_that_became_read_only_is_left_and_found_again(
    desk: Desk, database: asyncpg.Connection, logged: list[Mapping[str, Any]]
) -> None:
    desk.deliver(meter("m1"), vehicle("v1"))
    await desk.all_acknowledged()

    await read_only(database, True)
    desk.deliver(meter("m2"), vehicle("v2"))
    await tries(desk, "25006")
    assert desk.books() == {"stored": 2}

    # The connections of that time stay read-only for as long as they live: only new ones help.
    await read_only(database, False)
    await desk.all_acknowledged()
    assert desk.books() == {"stored": 4}
    assert {entry["log_level"] for entry in logged} == {"warning", "info"}


async def test_connections_that_are_killed_while_writing_lose_and_double_nothing(
    pool: Pool, database: asyncpg.Connection
) -> None:
    chance = random.Random(11)

    async def kill(desk: Desk) -> None:
        while True:
            before = desk.settled
            for _ in range(4):
                await asyncio.sleep(chance.uniform(0.005, 0.06))
                kills.append(await end_sessions(database))

            async def some_progress() -> bool:
                return desk.settled > before  # noqa: B023 - is asked in this round only

            await eventually(some_progress)  # or a slow machine would never get to connect in time

    kills: list[int] = []
    batches, size = 90, 120
    async with at_work(pool) as desk, asyncio.timeout(90):

        async def there_is_room() -> bool:
            return desk.accounts.in_flight <= 3 * size

        killing = asyncio.create_task(kill(desk))
        for number in range(batches):
            kind = vehicle if number % 3 else meter
            desk.deliver(*(kind(f"d{n}", number, kwh=n / 7) for n in range(size)))
            if number % 10 == 0:
                desk.deliver(("meters/d0/reading", b"garbage"))
            await eventually(there_is_room)
        killing.cancel()
        await asyncio.wait([killing])
        await desk.all_acknowledged()

    assert sum(kills) > 20
    assert desk.books() == {"stored": batches * size, "malformed_json": batches // 10}
    assert desk.accounts.stored == {"meter": 30 * size, "vehicle": 60 * size}
    found = Counter({kind: len(await devices(database, kind)) for kind in ("meter", "vehicle")})
    assert found == desk.accounts.stored
    newest = NOON + timedelta(minutes=batches - 1)
    assert await database.fetchval("SELECT count(*) FROM vehicle_status WHERE ts = $1", newest) == size


@pytest.mark.parametrize("way", ["fast", "slow"])
async def test_what_was_committed_counts_as_stored_when_the_answer_is_lost(
    database: asyncpg.Connection, database_url: str, way: str
) -> None:
    with Network(database_url) as network:
        async with open_pool(network.url, "test", 4) as pool, at_work(pool) as desk:
            desk.deliver(meter("m0"))
            await desk.all_acknowledged()

            network.lose_answer_to = b"COMMIT"
            repeated = [meter("m0")] if way == "slow" else []
            desk.deliver(*repeated, *(meter(f"m{n}") for n in range(1, 50)))
            await desk.all_acknowledged()

            assert network.answers_lost == 1
            assert desk.books() == {"stored": 50} | ({"duplicate": 1} if repeated else {})
    assert len(await devices(database)) == 50


async def test_a_database_whose_connections_are_all_taken_is_waited_for(
    database: asyncpg.Connection, database_url: str
) -> None:
    await database.fetchval("SELECT ensure_day('meter_reading', $1)", NOON.date())
    role = "limited_" + urlsplit(database_url).path.strip("/")
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'limited' CONNECTION LIMIT 1")
    await database.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    address = urlsplit(database_url)
    limited_url = f"postgresql://{role}:limited@{address.hostname}:{address.port}{address.path}"
    occupant = await asyncpg.connect(limited_url)
    try:
        async with open_pool(limited_url, "test", 4) as pool, at_work(pool) as desk:
            desk.deliver(meter("m1"))
            await tries(desk, "53300")
            assert desk.session.acknowledged == []
            await occupant.close()
            await desk.all_acknowledged()
            assert desk.books() == {"stored": 1}
    finally:
        await occupant.close()
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_table_that_is_locked_is_waited_for_beyond_the_time_of_one_try(
    desk: Desk, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle_module, "lease", functools.partial(lease, timeout_s=0.1))
    desk.deliver(meter("m1"))
    await desk.all_acknowledged()
    async with database.transaction():
        await database.execute("LOCK TABLE meter_reading")
        desk.deliver(meter("m2"))
        await tries(desk, "TimeoutError")
        assert desk.session.acknowledged == [1]
    await desk.all_acknowledged()

    assert desk.books() == {"stored": 2}
    assert await devices(database) == ["m1", "m2"]


async def test_a_writer_that_is_ended_in_an_outage_acknowledges_nothing(
    pool: Pool, database: asyncpg.Connection
) -> None:
    await database.execute("ALTER TABLE meter_reading RENAME TO elsewhere")
    desk = Desk(pool)
    writing = asyncio.create_task(desk.writer.run())
    desk.deliver(meter("m1"))
    desk.batches.close()
    await tries(desk, "42P01")
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing
    assert desk.session.acknowledged == []
    assert (desk.accounts.in_flight, desk.accounts.unaccounted) == (1, 0)


async def test_a_database_that_starts_late_gets_what_came_before(database_url: str, postgres: Any) -> None:
    """The daemon may start before the database is made."""
    url = f"{database_url}_late"
    name = urlsplit(url).path.strip("/")
    async with open_pool(url, "test", 4) as pool:
        try:
            async with at_work(pool) as desk:
                desk.deliver(meter("m1"), vehicle("v1"))
                await tries(desk, "3D000")
                postgres.create_database(name, "fleetwatt_template")
                await desk.all_acknowledged()
                assert desk.books() == {"stored": 2}
        finally:
            postgres.drop_database(name)
