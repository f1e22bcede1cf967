"""Tables on a Citus cluster: where each belongs, the step that puts it there, and everything else on such a cluster.

Most needs a coordinator with workers. CITUS_DATABASE_URL names any database of one, with a superuser's account that is
let in at the coordinator and at the workers, from here and from one another.
"""

import asyncio
import itertools
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit, urlunsplit
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from daemon.__main__ import main
from daemon.doctor import database as doctor
from daemon.maintenance import days_ahead
from dev.broker import PrivateBroker
from dev.house import House
from dev.publisher import Publisher
from sql import rejections, store
from sql.analytics import Rules, fleet, performance
from sql.completeness import completeness
from sql.devices import EnergyMode, get_device, list_readings, list_status, set_energy_mode, stream_readings
from sql.distribution import TABLES, Placement, check_cluster, find_places, place
from sql.errors import DistributionError
from sql.fleet import statement as sum_fleet
from sql.links import pair, remove, unpair
from sql.migrate import migrate
from sql.overview import OTHER_ENDS
from sql.partitions import HISTORY_TABLES, Days, drop_before, list_days
from sql.pool import Connection, Pool, lease, open_pool
from sql.queries import FOLDER as QUERIES
from sql.rejections import Chosen, Rejection
from sql.rollups import KINDS, rebuild, step
from sql.series import series
from sql.store import METER, VEHICLE, Kind, Row

CITUS = pytest.mark.skipif(
    not os.environ.get("CITUS_DATABASE_URL"),
    reason="no package that `make` installs brings Citus; CITUS_DATABASE_URL names a coordinator with workers",
)
SHARDS = 4
START = datetime(2024, 5, 2, 22, tzinfo=UTC)
"""Two hours before a partition ends."""
MINUTES = 240
RULES = Rules()
Node: TypeAlias = tuple[str, int]
NOT_ELSEWHERE = "SET citus.enable_create_database_propagation = off"
"""A database is created on each node by itself."""
_numbers = itertools.count(1)
_receipts = itertools.count(1)


# Without a cluster.


async def test_every_table_of_the_schema_has_its_place(database: asyncpg.Connection) -> None:
    rows = await database.fetch(
        "SELECT relname FROM pg_class "
        "WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
    )
    assert sorted(row["relname"] for row in rows) == sorted(placement.table for placement in TABLES)


def test_a_table_is_placed_after_the_one_that_it_is_beside() -> None:
    placed: dict[str, Placement] = {}
    for placement in TABLES:
        if placement.beside:
            assert placed[placement.beside].where == "distributed"
        assert (placement.column is not None) == (placement.where == "distributed")
        placed[placement.table] = placement


def test_without_the_extension_the_step_says_what_is_missing_and_changes_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert main(["migrate", "--distribute"]) == 1
    assert "CREATE EXTENSION citus" in capsys.readouterr().err
    assert main(["migrate"]) == 0


# With one.


def named(url: str, database: str) -> str:
    """The URL of another database with the same account."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


async def run(url: str, node: Node, database: str, *statements: str) -> None:
    connection = await asyncpg.connect(
        named(url, database), host=node[0], port=node[1], server_settings={"client_min_messages": "error"}
    )
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


class Cluster:
    """A cluster on which a test has databases of its own."""

    def __init__(self, url: str, nodes: list[Node]) -> None:
        """`nodes`: the coordinator, then the workers."""
        self._url = url
        self._nodes = nodes
        self._names: list[str] = []

    async def create(self, *, workers: bool = True) -> str:
        """The URL of a new database with the extension; without `workers`, the coordinator is told of none."""
        name = f"fleetwatt_test_{os.getpid()}_{next(_numbers)}"
        self._names.append(name)
        for node in self._nodes:
            await run(self._url, node, "postgres", NOT_ELSEWHERE, f"CREATE DATABASE {name}")
            await run(self._url, node, "postgres", f"ALTER DATABASE {name} SET citus.shard_count = {SHARDS}")
            await run(self._url, node, name, "CREATE EXTENSION citus")
        if workers:
            connection = await asyncpg.connect(named(self._url, name))
            await connection.execute("SELECT citus_set_coordinator_host($1, $2)", *self._nodes[0])
            for node in self._nodes[1:]:
                await connection.execute("SELECT citus_add_node($1, $2)", *node)
            await connection.close()
        return named(self._url, name)

    async def drop_all(self) -> None:
        """Drop what was created."""
        for name, node in itertools.product(self._names, self._nodes):
            await run(self._url, node, "postgres", NOT_ELSEWHERE, f"DROP DATABASE {name} WITH (FORCE)")


async def open_cluster() -> Cluster:
    url = os.environ["CITUS_DATABASE_URL"]
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT nodename, nodeport FROM pg_dist_node ORDER BY groupid")
    await connection.close()
    return Cluster(url, [(row["nodename"], row["nodeport"]) for row in rows])


async def distribute(url: str) -> None:
    connection = await asyncpg.connect(url)
    await migrate(connection)
    for placement in TABLES:
        await place(connection, placement)
    await connection.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = asyncio.run(open_cluster())
    yield cluster
    asyncio.run(cluster.drop_all())


@pytest.fixture(scope="module")
def spread_url(cluster: Cluster) -> str:
    """One distributed database for the tests that have days or devices of their own: making one takes seconds."""
    url = asyncio.run(cluster.create())
    asyncio.run(distribute(url))
    return url


@pytest.fixture
async def spread_pool(spread_url: str) -> AsyncIterator[Pool]:
    """A pool as the daemon has it."""
    async with open_pool(spread_url, "test", 4) as pool:
        yield pool


@pytest.fixture
async def spread(spread_pool: Pool) -> AsyncIterator[Connection]:
    async with lease(spread_pool, timeout_s=120) as connection:
        yield connection


# The step.


@CITUS
async def test_the_step_places_each_table_and_says_of_each_the_second_time_that_it_is_there(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", url := await cluster.create())
    said = []
    for _ in range(2):
        assert await asyncio.to_thread(main, ["migrate", "--distribute"]) == 0
        said.append(capsys.readouterr().err)
    for placement in TABLES:
        for text in said:
            (line,) = (line for line in text.splitlines() if f"table={placement.table}" in line)
            assert str(placement) in line
            assert ("placed" in line) == (text is said[0] and placement.where != "local")
    connection = await asyncpg.connect(url)
    places = await find_places(connection)
    assert {name: place.where for name, place in places.items()} == {each.table: each.where for each in TABLES}
    assert places["meter_reading"].colocation == places["meter_status"].colocation
    assert places["meter_reading"].colocation != places["vehicle_reading"].colocation
    await connection.close()


@CITUS
async def test_rows_that_are_there_already_are_moved_with_a_warning(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = await cluster.create()
    connection = await asyncpg.connect(url)
    await migrate(connection)
    rows = readings(METER, "m", range(MINUTES))
    await store.copy(connection, METER, store.sort(list(rows)), Days())
    monkeypatch.setenv("DATABASE_URL", url)

    assert await asyncio.to_thread(main, ["migrate", "--distribute"]) == 0

    warned = [line for line in capsys.readouterr().err.splitlines() if "are being moved" in line]
    assert [re.findall(r"table=(\w+)", line) for line in warned] == [["meter_status"], ["meter_reading"]]
    assert await connection.fetchval("SELECT count(*) FROM meter_reading") == len(rows)
    left = "SELECT sum(pg_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'meter_reading'::regclass"
    assert await connection.fetchval(left) == 0
    assert (await store.insert(connection, METER, rows, Days())).duplicates == 0  # they are known by their receipt
    await connection.close()


@CITUS
async def test_a_coordinator_without_workers_is_told_how_to_get_some(cluster: Cluster) -> None:
    connection = await asyncpg.connect(await cluster.create(workers=False))
    with pytest.raises(DistributionError, match=r"knows no workers.*citus_add_node"):
        await check_cluster(connection)
    await connection.close()


@CITUS
async def test_a_table_that_is_distributed_otherwise_is_left_as_it_is(cluster: Cluster) -> None:
    connection = await asyncpg.connect(await cluster.create())
    await migrate(connection)
    await connection.execute("SELECT create_reference_table('vehicle_status')")
    await connection.execute("SELECT create_distributed_table('meter_reading', 'meter_id', colocate_with => 'none')")
    for placement in TABLES[:1]:
        assert await place(connection, placement)

    for placement, sentence in (
        (TABLES[1], "meter_reading is distributed by meter_id apart from meter_status, and should be distributed by"),
        (TABLES[2], "vehicle_status is on every node, and should be distributed by vehicle_id; to begin again with it"),
    ):
        with pytest.raises(DistributionError, match=sentence):
            await place(connection, placement)
    await connection.close()


@CITUS
async def test_an_account_that_does_not_own_the_tables_is_refused_in_words(cluster: Cluster) -> None:
    connection = await asyncpg.connect(await cluster.create())
    await migrate(connection)
    account = f"stranger_{os.getpid()}"
    await connection.execute(f"CREATE ROLE {account}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {account}")
    await connection.execute(f"SET ROLE {account}")

    with pytest.raises(DistributionError, match=r"may not distribute meter_status .*must be owner"):
        await place(connection, TABLES[0])
    await connection.execute(f"RESET ROLE; DROP OWNED BY {account}; DROP ROLE {account}")
    await connection.close()


# Storing.


def readings(kind: Kind, device_id: str, minutes: Iterable[int], start: datetime = START) -> list[Row]:
    """One a minute, with values whose sums are exact in any order."""
    values = (230.0,) if kind is METER else (20.0,)
    first = () if kind is METER else (50.0,)
    return [
        (
            device_id,
            start + timedelta(minutes=n),
            *first,
            0.25 * (n % 8),
            *values,
            start + timedelta(microseconds=next(_receipts)),
            b"",
        )
        for n in minutes
    ]


@CITUS
@pytest.mark.parametrize("kind", [METER, VEHICLE], ids=lambda kind: kind.name)
async def test_both_ways_into_the_table_tell_what_they_found(spread: Connection, kind: Kind) -> None:
    first = [row for n in range(20) for row in readings(kind, f"a{n}", range(60, 180))]
    await store.copy(spread, kind, store.sort(first), Days())

    again = [(*row[:-2], row[-2] + timedelta(hours=1), b"") for row in first[:5]]
    others = [(*row[:2], row[2] + 1, *row[3:-2], row[-2] + timedelta(hours=2), b"") for row in first[5:8]]
    fresh = readings(kind, "a0", range(180, 190))
    with pytest.raises(asyncpg.PostgresError, match="duplicate key value"):
        await store.copy(spread, kind, store.sort([*again, *others, *fresh]), Days())
    batch = store.sort([*again, *others, *fresh])
    inserted = await store.insert(spread, kind, batch.rows, Days())

    assert (inserted.stored, inserted.duplicates, len(inserted.conflicts)) == (10, 5, 3)
    table, column = kind.history_table, kind.columns[0]
    assert await spread.fetchval(f"SELECT count(*) FROM {table} WHERE {column} LIKE 'a%'") == len(first) + len(fresh)
    newest = await spread.fetchval(f"SELECT ts FROM {kind.name}_status WHERE {column} = 'a0'")
    assert newest == START + timedelta(minutes=189)


@CITUS
async def test_a_batch_may_touch_as_many_days_as_elsewhere(spread: Connection) -> None:
    rows = readings(METER, "days", range(0, store.DAYS_MAX * 1440, 1440), START - timedelta(days=1000))
    await store.copy(spread, METER, store.sort(list(rows)), Days())
    inserted = await store.insert(spread, METER, rows, Days())
    assert (inserted.stored, inserted.duplicates) == (store.DAYS_MAX, 0)
    first = (START - timedelta(days=950)).date()
    await drop_before(spread, "meter_reading", first)
    assert min((await list_days(spread, "meter_reading")).values()) == first
    assert await spread.fetchval("SELECT count(*) FROM meter_reading WHERE meter_id = 'days'") == 50


@CITUS
async def test_two_that_write_the_same_readings_store_each_once(spread_pool: Pool) -> None:
    rows = [row for n in range(50) for row in readings(METER, f"same{n}", range(20))]
    batch = store.sort(rows)

    async def write() -> int:
        late = [(*row[:-2], row[-2] + timedelta(seconds=next(_receipts)), b"") for row in batch.rows]
        while True:
            try:
                async with lease(spread_pool) as connection:
                    return (await store.insert(connection, METER, late, Days())).stored
            except asyncpg.DeadlockDetectedError:  # the shards are written side by side; the daemon tries again, too
                continue

    assert sum(await asyncio.gather(*(write() for _ in range(4)))) == len(rows)


@CITUS
async def test_the_daemon_accounts_for_every_reading(
    tmp_path: Path, broker: PrivateBroker, spread_url: str, spread: Connection
) -> None:
    now_s = int(datetime.now(UTC).timestamp())
    meters = [
        (f"meters/d{n % 40}/reading", b'{"kwhConsumedAc":%d,"voltage":230,"timestamp":%d}' % (n, now_s - n // 40 * 60))
        for n in range(4000)
    ]
    body = b'{"soc":%d,"kwhDeliveredDc":1,"batteryTemp":20,"timestamp":%d}'
    vehicles = [(f"vehicles/d{n % 40}/reading", body % (n % 100, now_s - n // 40 * 60)) for n in range(4000)]
    odd = [*meters[:100], ("meters/d1/reading", b'{"kwhConsumedAc":-7,"voltage":1,"timestamp":%d}' % now_s)]
    odd += [
        ("meters/d1/reading", b'{"kwhConsumedAc":9e8,"voltage":1,"timestamp":%d}' % now_s),
        ("meters/d1/reading", b"{"),
    ]
    house = House(tmp_path, broker, spread_url, SPOOL_DIR="", RETENTION_DAYS="0")
    await asyncio.to_thread(house.start)
    try:
        await Publisher(broker.port, "devices").publish([*meters, *vehicles])
        await house.settled(8000)
        await Publisher(broker.port, "devices").publish(odd)
        books = await house.settled(8103)
        assert house.run("check") in (0, 1)
    finally:
        await asyncio.to_thread(house.daemon.stop)

    assert (sum(books.stored.values()), books.duplicate, books.unaccounted) == (8000, 100, 0)
    assert books.rejected == {"out_of_range": 1, "conflict": 1, "malformed_json": 1}
    for table in HISTORY_TABLES:
        assert await spread.fetchval(f"SELECT count(*) FROM {table} WHERE {table[:-8]}_id LIKE 'd%'") >= 4000
        assert set(days_ahead(datetime.now(UTC).date())) <= set((await list_days(spread, table)).values())


@CITUS
async def test_the_doctor_does_not_take_the_coordinators_disk_for_that_of_the_history(spread: Connection) -> None:
    server, _ = await doctor.examine_server(spread)
    finding = await doctor.examine_disk(spread, server, {}, START.date(), 0)
    assert (finding.level, "workers" in finding.text) == ("skipped", True)


# Asking.


@CITUS
async def test_the_answers_are_those_of_one_server(spread_pool: Pool, pool: Pool) -> None:
    """The same devices in both databases, asked everything that the sidecar asks."""
    answers = []
    for each in (spread_pool, pool):
        async with lease(each, timeout_s=120) as connection:
            await fill(connection)
            answers.append(await ask(connection))
            # Rolled up, with a reading that came late, and with rollups made anew: the same again.
            for kind in KINDS:
                await roll_up(connection, kind)
            await store.copy(connection, METER, store.sort(readings(METER, "m3", [-61])), Days())
            answers[-1] |= {f"{name}, rolled up": answer for name, answer in (await ask(connection)).items()}
            for kind in KINDS:
                await roll_up(connection, kind)
                assert await rebuild(connection, kind, "", START, RULES.power_max_kw)
            answers[-1] |= {f"{name}, rolled up again": answer for name, answer in (await ask(connection)).items()}
    assert answers[0].keys() == answers[1].keys()
    for name, answer in answers[1].items():
        assert answers[0][name] == answer, name


async def roll_up(connection: Connection, kind: Kind) -> None:
    while await step(connection, kind, START + timedelta(days=2)):
        pass
    assert await connection.fetchval(f"SELECT count(*) FROM {kind.name}_hour") > 10
    assert await connection.fetchval(f"SELECT count(*) FROM {kind.name}_late") == 0


async def fill(connection: Connection) -> None:
    """Ten vehicles and ten meters of all modes, linked but for one; some change their meter."""
    tables = "device, vehicle_meter_link, meter_status, vehicle_status, meter_reading, vehicle_reading, rejection"
    rollups = "meter_hour, meter_day, meter_late, vehicle_hour, vehicle_day, vehicle_late"
    await connection.execute(f"TRUNCATE {tables}, {rollups}")
    await connection.execute("UPDATE rollup_state SET closed_through = DEFAULT, rolled_through = DEFAULT")
    for n in range(10):
        for kind in (METER, VEHICLE):
            device_id = f"{kind.name[0]}{n}"
            rows = readings(kind, device_id, range(n, MINUTES + n))
            at = 2 if kind is METER else 3
            if n % 3 == 1:  # a register
                rows = [(*row[:at], 1000 + 0.25 * k, *row[at + 1 :]) for k, row in enumerate(rows)]
            await store.copy(connection, kind, store.sort(rows), Days())
            mode: EnergyMode = ("interval", "register", "session")[n % 3]
            await set_energy_mode(connection, kind, device_id, mode)
    for n in range(9):
        await pair(connection, f"v{n}", f"m{n}", START + timedelta(minutes=10 * n), None)
    await pair(connection, "v0", "m9", START + timedelta(minutes=200), None)
    await unpair(connection, "v1")
    await pair(connection, "v9", "m8", START + timedelta(minutes=220), None)
    await remove(connection, "v9", START + timedelta(minutes=220))
    kept = [
        Rejection(START + timedelta(seconds=n), "meters/m1/reading", "malformed_json", "no", b"x") for n in range(5)
    ]
    await rejections.insert(connection, kept)


async def ask(connection: Connection) -> dict[str, Any]:
    """Everything, without what says when it was asked, stored or ended."""
    start, end = START + timedelta(minutes=30), START + timedelta(minutes=MINUTES)
    answers: dict[str, Any] = {"fleet": await fleet(connection, start, end, RULES, 5)}
    answers["fleet, full hours"] = await fleet(connection, START, START + timedelta(hours=3), RULES, 5)
    answers["series"] = await series(connection, "v4", start, end, RULES, "hour", ZoneInfo("Asia/Kolkata"))
    for n in range(10):
        answers[f"performance {n}"] = await performance(connection, f"v{n}", start, end, RULES)
    for kind in (METER, VEHICLE):
        device_id = f"{kind.name[0]}4"
        answers[f"device {kind.name}"] = await get_device(connection, kind, device_id)
        answers[f"complete {kind.name}"] = await completeness(connection, kind, device_id, start, end, end)
        page = await list_readings(connection, kind, device_id, start, end, after=None, limit=7)
        answers[f"page {kind.name}"] = [(one.ts, one.received_at < end) for one in page]
        chunks = [chunk async for chunk in stream_readings(connection, kind, device_id, start, end)]
        answers[f"export {kind.name}"] = [one.ts for chunk in chunks for one in chunk]
        live = await list_status(connection, kind, after="", limit=100)
        answers[f"live {kind.name}"] = [(one.id, one.ts, one.energy_mode) for one in live]
    answers["groups"] = [
        (one.reason, one.rejections) for one in (await rejections.group(connection, Chosen(), 5)).items
    ]
    answers["purged"] = await rejections.purge(connection, START + timedelta(seconds=2), 100)
    return answers


def texts() -> Iterator[tuple[str, str]]:
    """Every query for every kind of device, each text once; the fleet's sums as the one statement that they make."""
    seen = {
        sum_fleet(has_edges, has_days): f"sum_fleet{' edges' * has_edges}{' days' * has_days}"
        for has_edges, has_days in itertools.product((False, True), repeat=2)
    }
    for path in sorted(QUERIES.glob("*.sql")):
        for kind, width in itertools.product((METER, VEHICLE), ("hour", "day")):
            if not path.stem.startswith("sum_"):
                text = kind.query(path.stem, step=width, other_id=OTHER_ENDS[kind])
                seen.setdefault(text, f"{path.stem} {kind.name} {width}")
    return ((name, text) for text, name in seen.items())


@CITUS
@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in texts()])
async def test_a_query_is_planned_by_shard_and_about_one_device_on_one(spread: Connection, text: str) -> None:
    for devices in ["m1"], ["m1", "m2", "m3"]:
        plan = await explain(spread, text, devices)
        if "_reading" in text and "INSERT INTO" not in text:  # what is inserted from arrays comes from the coordinator
            if text.startswith("-- The fleet in"):  # which brings a row of each device
                assert "remote_scan.ts" not in plan, f"pulls readings to the coordinator:\n{plan}"
            else:
                assert "Distributed Subplan" not in plan, f"pulls rows to the coordinator:\n{plan}"
        tasks = [int(count) for count in re.findall(r"Task Count: (\d+)", plan)]
        if "_id = $1" in text or ("_id = ($1" in text and len(devices) == 1):
            assert set(tasks) == {1}, f"asks several shards:\n{plan}"


async def explain(connection: Connection, text: str, devices: list[str]) -> str:
    """The plan of a query, with an argument of the right type for each parameter; of the step's own queries, none."""
    if "pg_dist_" in text or "create_" in text or "truncate_" in text:
        return ""
    statement = await connection.prepare(text)
    given = [sample(parameter.name, n, devices) for n, parameter in enumerate(statement.get_parameters())]
    return "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN (VERBOSE) {text}", *given))


def sample(type_name: str, n: int, devices: list[str]) -> Any:
    """A value of a type, later for a later parameter where it is a time."""
    one: dict[str, Any] = {
        "text": devices[0],
        "regclass": "meter_reading",
        "timestamptz": START + timedelta(hours=n),
        "interval": timedelta(minutes=5),
        "float8": 60.0,
        "int4": 10,
        "int8": 10,
        "bytea": b"x",
        "bool": True,
    }
    if type_name == "text[]":
        return devices
    return [one[type_name[:-2]]] * len(devices) if type_name.endswith("[]") else one[type_name]
