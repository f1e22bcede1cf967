"""What the doctor says of a database: nothing of one in order, and of a broken one just what is broken."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from daemon.doctor import database
from daemon.doctor.database import forecast, judge_clock, judge_version
from dev.house import eventually
from dev.network import Network
from dev.postgres import PrivatePostgres
from dev.processes import free_port
from tests.doctor.conftest import StartHouse
from tests.doctor.house import DATABASE_PASSWORD, House, make_days, troubles, url_as_owner

GB = 10**9
TODAY = datetime.now(UTC).date()


@pytest.fixture
async def settled(open_house: StartHouse) -> House:
    """In order, but that no daemon runs."""
    house = open_house()
    await make_days(house)
    house.start_daemon()
    house.daemon.stop()
    return house


@pytest.fixture
async def owner(settled: House, owned_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(owned_url)
    yield connection
    await connection.close()


async def as_superuser(server: PrivatePostgres, database_name: str, statement: str) -> None:
    connection = await asyncpg.connect(server.url(database_name))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_database_in_order(settled: House) -> None:
    found = await settled.check()
    assert troubles(found) == set()
    assert found["database.version"].text.startswith("PostgreSQL 18")
    assert found["database.role"].text == "fleetwatt, no superuser"


@pytest.mark.parametrize(
    ("url", "text", "remedy"),
    [
        ("postgresql://fleetwatt:wrong@127.0.0.1:{port}/{name}", "password authentication failed", "ALTER ROLE"),
        ("postgresql://fleetwatt:{secret}@127.0.0.1:{port}/none", 'database "none" does not exist', "createdb"),
        ("postgresql://fleetwatt:{secret}@127.0.0.1:{free}/{name}", "nothing listens", "systemctl start postgresql"),
        ("postgresql://fleetwatt:{secret}@no.such.host.invalid/{name}", "has no address", "correct host and port"),
        ("postgresql://fleetwatt:{secret}@127.0.0.1:{port}/{name}?sslmode=no", "sslmode", "correct DATABASE_URL"),
        ("postgresql://fleetwatt:{secret}@127.0.0.1:{port}/{name}?sslmode=require", "rejected SSL", "sslmode"),
    ],
)
async def test_a_wrong_address(
    settled: House, durable: PrivatePostgres, owned_database: str, url: str, text: str, remedy: str
) -> None:
    given = {"port": durable.port, "free": free_port(), "name": owned_database, "secret": DATABASE_PASSWORD}
    found = await settled.check(DATABASE_URL=url.format(**given))
    assert troubles(found) == {"database.connect"}
    assert text in found["database.connect"].text
    assert remedy in (found["database.connect"].remedy or "")
    assert DATABASE_PASSWORD not in found["database.connect"].text
    assert found["database.schema"].text == "skipped because the database cannot be reached"


async def test_a_network_that_swallows_everything(
    settled: House, owned_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "CONNECT_TIMEOUT_S", 0.5)
    with Network(owned_url) as network:
        network.black_hole = True
        found = await settled.check(DATABASE_URL=network.url)
    assert troubles(found) == {"database.connect"}
    assert "does not answer within" in found["database.connect"].text
    assert "firewalls" in (found["database.connect"].remedy or "")


async def test_a_check_that_is_cut_off_leaves_no_connection(owned_url: str) -> None:
    """At whatever moment."""
    connection, patience_s = None, 0.0
    while connection is None:
        patience_s += 0.0002
        try:
            async with asyncio.timeout(patience_s):
                _, connection = await database.try_connect(owned_url, "cut off")
        except TimeoutError:
            pass

    async def is_alone() -> bool:
        others = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cut off' AND pid <> pg_backend_pid()"
        return bool(await connection.fetchval(others) == 0)

    await eventually(is_alone)
    await connection.close()


async def test_no_connection_left(settled: House, durable: PrivatePostgres) -> None:
    await as_superuser(durable, "postgres", "ALTER ROLE fleetwatt CONNECTION LIMIT 0")
    try:
        found = await settled.check()
    finally:
        await as_superuser(durable, "postgres", "ALTER ROLE fleetwatt CONNECTION LIMIT -1")
    assert troubles(found) == {"database.connect"}
    assert "too many connections" in found["database.connect"].text
    assert "raise max_connections" in (found["database.connect"].remedy or "")


async def test_hardly_a_connection_left(settled: House, durable: PrivatePostgres) -> None:
    await as_superuser(durable, "postgres", "ALTER ROLE fleetwatt CONNECTION LIMIT 5")
    try:
        found = await settled.check()
    finally:
        await as_superuser(durable, "postgres", "ALTER ROLE fleetwatt CONNECTION LIMIT -1")
    assert troubles(found) == {"database.connections"}
    assert found["database.connections"].level == "warning"


async def test_no_schema(settled: House, durable: PrivatePostgres) -> None:
    durable.create_database("empty")
    found = await settled.check(DATABASE_URL=url_as_owner(durable, "empty"))
    durable.drop_database("empty")
    assert troubles(found) == {"database.schema"}
    assert "has no schema yet" in found["database.schema"].text
    assert "python -m daemon migrate" in (found["database.schema"].remedy or "")
    assert found["database.rights"].level == "skipped"


async def test_an_older_schema(settled: House, owner: asyncpg.Connection) -> None:
    await owner.execute("DELETE FROM schema_migration WHERE version = (SELECT max(version) FROM schema_migration)")
    found = await settled.check()
    assert troubles(found) == {"database.schema"}
    assert "the database lacks" in found["database.schema"].text
    assert "python -m daemon migrate" in (found["database.schema"].remedy or "")


async def test_a_newer_schema(settled: House, owner: asyncpg.Connection) -> None:
    await owner.execute("INSERT INTO schema_migration (version, name, checksum) VALUES (9999, 'future', '')")
    found = await settled.check()
    assert troubles(found) == {"database.schema"}
    assert "newer release" in found["database.schema"].text + (found["database.schema"].remedy or "")


async def test_a_right_that_is_missing(settled: House, owner: asyncpg.Connection) -> None:
    await owner.execute("REVOKE INSERT ON meter_reading FROM fleetwatt")
    found = await settled.check()
    assert troubles(found) == {"database.rights"}
    assert found["database.rights"].text == "missing: INSERT on meter_reading"
    await owner.execute(found["database.rights"].remedy)
    assert troubles(await settled.check()) == set()


async def test_a_table_of_another_owner(settled: House, durable: PrivatePostgres, owned_database: str) -> None:
    await as_superuser(durable, owned_database, "ALTER TABLE vehicle_reading OWNER TO postgres")
    found = await settled.check()
    assert troubles(found) == {"database.rights"}
    assert "OWNER of vehicle_reading" in found["database.rights"].text
    await as_superuser(durable, owned_database, found["database.rights"].remedy or "")
    assert troubles(await settled.check()) == set()


async def test_a_database_that_became_read_only(settled: House, durable: PrivatePostgres, owned_database: str) -> None:
    await as_superuser(durable, "postgres", f"ALTER DATABASE {owned_database} SET default_transaction_read_only = on")
    found = await settled.check()
    assert troubles(found) == {"database.server"}
    assert f"ALTER DATABASE {owned_database} RESET" in (found["database.server"].remedy or "")


async def test_nothing_is_sent_through_that_could_not_be_stored(
    settled: House, durable: PrivatePostgres, owned_database: str
) -> None:
    settled.start_daemon()
    before = await settled.check()
    await as_superuser(durable, "postgres", f"ALTER DATABASE {owned_database} SET default_transaction_read_only = on")
    found = await settled.check()
    assert (before["passage"].level, found["passage"].level) == ("ok", "skipped")
    assert found["daemon.accounts"].text == "0 unaccounted of 1 readings since its start"


async def test_a_partition_that_is_missing(settled: House, owner: asyncpg.Connection) -> None:
    tomorrow = TODAY + timedelta(days=1)
    await owner.execute(f"DROP TABLE vehicle_reading_{tomorrow:%Y%m%d}")
    found = await settled.check()
    assert troubles(found) == {"database.partitions"}
    assert (found["database.partitions"].level, found["database.partitions"].text) == (
        "warning",
        f"missing: {tomorrow}",
    )
    settled.start_daemon()
    assert (await settled.check())["database.partitions"].level == "ok"


async def test_a_running_daemon_that_makes_no_partitions(
    settled: House, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "MAINTENANCE_PATIENCE_S", 0.0)
    partition = f"meter_reading_{TODAY + timedelta(days=7):%Y%m%d}"

    async def is_made() -> bool:
        return await owner.fetchval("SELECT to_regclass($1)", partition) is not None

    await owner.execute(f"DROP TABLE {partition}")
    settled.start_daemon()
    await eventually(is_made)  # and not again for an hour
    await owner.execute(f"DROP TABLE {partition}")
    found = await settled.check()
    assert found["database.partitions"].level == "failure"
    assert "journalctl -u fleetwatt-daemon" in (found["database.partitions"].remedy or "")


async def test_a_partition_that_is_not_the_daemons(settled: House, owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE TABLE others PARTITION OF meter_reading DEFAULT")
    found = await settled.check()
    assert troubles(found) == {"database.partitions"}
    await owner.execute(found["database.partitions"].remedy)
    assert troubles(await settled.check()) == set()


async def test_a_superuser(settled: House, durable: PrivatePostgres, owned_database: str) -> None:
    found = await settled.check(DATABASE_URL=durable.url(owned_database))
    assert troubles(found) == {"database.role"}
    assert "free disk unknown" not in found["database.disk"].text  # who may see where the data are finds the disk


async def test_a_server_that_does_not_wait_for_its_disk(settled: House, durable: PrivatePostgres) -> None:
    await as_superuser(durable, "postgres", "ALTER ROLE fleetwatt SET synchronous_commit = off")
    try:
        found = await settled.check()
    finally:
        await as_superuser(durable, "postgres", "ALTER ROLE fleetwatt RESET synchronous_commit")
    assert troubles(found) == {"database.durability"}
    assert "synchronous_commit = on" in (found["database.durability"].remedy or "")


async def test_a_server_without_fsync(settled: House, database_url: str) -> None:
    """That of the other tests, which goes without for speed."""
    found = await settled.check(DATABASE_URL=database_url)
    assert found["database.durability"].text.startswith("fsync off")


async def test_a_transaction_that_was_left_open(
    settled: House, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "TRANSACTION_S_MAX", 0.0)
    await owner.execute("BEGIN")
    await owner.execute("SELECT 1")
    found = await settled.check()
    assert troubles(found) == {"database.transactions"}
    assert f"pid {owner.get_server_pid()} of fleetwatt" in found["database.transactions"].text
    await owner.execute("ROLLBACK")
    await owner.execute("BEGIN")
    await owner.execute("PREPARE TRANSACTION 'forgotten'")
    found = await settled.check()
    assert "ROLLBACK PREPARED" in (found["database.transactions"].remedy or "")
    await owner.execute("ROLLBACK PREPARED 'forgotten'")


async def test_rejections_of_the_last_day(settled: House, owner: asyncpg.Connection) -> None:
    await owner.execute(
        "INSERT INTO rejection (received_at, topic, reason, detail, payload) SELECT now(), 't', reason, '', '' "
        "FROM unnest(ARRAY['bad_id', 'malformed_json', 'malformed_json']) AS reason"
    )
    found = await settled.check()
    assert troubles(found) == {"database.rejections"}
    assert found["database.rejections"].text == "in the last 24 hours: 2 malformed_json, 1 bad_id"
    assert found["database.rejections"].remedy == "python -m daemon rejections list"


async def test_the_passage_leaves_nothing_behind(settled: House, owner: asyncpg.Connection) -> None:
    settled.start_daemon()
    found = await settled.check()
    assert found["passage"].level == "ok"
    for table in ("rejection", "meter_reading", "meter_status"):
        assert await owner.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_growth_is_measured_over_full_days(settled: House, owner: asyncpg.Connection) -> None:
    yesterday = TODAY - timedelta(days=1)
    await owner.execute("SELECT ensure_day('meter_reading', $1)", yesterday)
    await owner.execute(
        "INSERT INTO meter_reading SELECT 'm' || n, $1::date::timestamp AT TIME ZONE 'UTC', 1, 230, now() "
        "FROM generate_series(1, 10000) AS n",
        yesterday,
    )
    found = await settled.check(RETENTION_DAYS="100")
    assert found["database.disk"].level == "ok"
    assert "more a day" in found["database.disk"].text
    assert "when RETENTION_DAYS are full" in found["database.disk"].text


@pytest.mark.parametrize(
    ("free", "retention_days", "level", "text"),
    [
        (None, 100, "ok", "100.0 GB when RETENTION_DAYS are full"),
        (200 * GB, 100, "ok", "100.0 GB when"),
        (50 * GB, 100, "warning", "full in 50 days"),
        (5 * GB, 100, "failure", "full in 5.0 days"),
        (50 * GB, 0, "warning", "for ever: full in 50 days"),
    ],
)
def test_the_forecast_of_the_disk(free: int | None, retention_days: int, level: str, text: str) -> None:
    found = forecast(10 * GB, 10 * GB, 1.0 * GB, free, retention_days)
    assert (found.level, text in found.text) == (level, True), found


def test_an_empty_day_is_no_division_by_zero() -> None:
    assert forecast(GB, 0, 0.0, 0, 0).level == "ok"


@pytest.mark.parametrize(("difference_s", "level"), [(0.5, "ok"), (-0.5, "ok"), (3, "warning"), (-3, "warning")])
def test_clocks(difference_s: float, level: str) -> None:
    assert judge_clock(difference_s).level == level


@pytest.mark.parametrize(("number", "level"), [(110022, "failure"), (140005, "warning"), (150004, "ok")])
def test_releases_of_postgresql(number: int, level: str) -> None:
    assert judge_version(number, str(number)).level == level
