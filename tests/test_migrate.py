"""Migrations: what is applied, in which order, and what is refused with which sentence."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from dev.house import PATIENCE_S, eventually
from dev.postgres import PrivatePostgres
from sql.errors import SchemaError
from sql.migrate import Migration, load, migrate, verify
from tests.conftest import Connect

FIRST = Migration(1, "first", "CREATE TABLE first (n integer)")
SECOND = Migration(2, "second", "CREATE TABLE second (n integer)")
BROKEN = Migration(2, "second", "CREATE TABLE second (n integer); SELECT 1 / 0")
_numbers = itertools.count(1)


@pytest.fixture
def empty_url(postgres: PrivatePostgres) -> Iterator[str]:
    name = f"empty_{next(_numbers)}"
    postgres.create_database(name)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
async def empty(empty_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(empty_url)
    yield connection
    await connection.close(timeout=5)


async def tables(connection: asyncpg.Connection) -> set[str]:
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {row["tablename"] for row in rows}


async def test_an_empty_database_gets_every_migration_in_order(empty: asyncpg.Connection) -> None:
    applied = await migrate(empty)

    assert applied == load()
    rows = await empty.fetch("SELECT version, name, checksum FROM schema_migration ORDER BY applied_at, version")
    assert [tuple(row) for row in rows] == [(each.version, each.name, each.checksum) for each in applied]
    assert {"meter_reading", "vehicle_reading", "meter_status", "vehicle_status", "rejection"} <= await tables(empty)
    await verify(empty)


async def test_a_second_migration_does_nothing(empty: asyncpg.Connection) -> None:
    await migrate(empty)
    before = await empty.fetch("TABLE schema_migration")

    assert await migrate(empty) == []
    assert await empty.fetch("TABLE schema_migration") == before


async def test_a_later_release_applies_only_what_is_new(empty: asyncpg.Connection) -> None:
    await migrate(empty, [FIRST])
    assert await migrate(empty, [FIRST, SECOND]) == [SECOND]


async def test_two_that_migrate_at_once_take_turns(
    empty: asyncpg.Connection, empty_url: str, connected: Connect
) -> None:
    other = await connected(empty_url)
    applied = await asyncio.gather(migrate(empty), migrate(other))

    assert sorted([*applied[0], *applied[1]], key=lambda migration: migration.version) == load()


async def test_a_migration_that_fails_leaves_nothing_behind(
    empty: asyncpg.Connection, empty_url: str, connected: Connect
) -> None:
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(empty, [FIRST, BROKEN])

    assert await tables(empty) == {"schema_migration", "first"}
    other = await connected(empty_url)
    async with asyncio.timeout(PATIENCE_S):  # the failed one must not keep the lock while its connection lives
        assert await migrate(other, [FIRST, SECOND]) == [SECOND]


async def test_a_migration_whose_connection_is_cut_can_be_done_again(
    empty: asyncpg.Connection, empty_url: str, connected: Connect
) -> None:
    slow = Migration(2, "second", "CREATE TABLE second (n integer); SELECT pg_sleep(60)")
    cut = await connected(empty_url)
    migrating = asyncio.create_task(migrate(cut, [FIRST, slow]))
    sleeping = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND pid = $1"
    await eventually(lambda: empty.fetchval(sleeping, cut.get_server_pid()))

    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await migrating
    async with asyncio.timeout(PATIENCE_S):
        assert await migrate(empty, [FIRST, SECOND]) == [SECOND]


CONTRADICTIONS = {
    "a file that was changed after it was applied": (
        [FIRST, SECOND],
        [FIRST, Migration(2, "second", "CREATE TABLE second (n bigint)")],
        "migration 0002_second was changed after it was applied to this database; "
        "restore the file and put the change into a new migration",
    ),
    "a database that a newer release migrated": (
        [FIRST, SECOND],
        [FIRST],
        "the database has migration 0002_second, which this program does not know: "
        "it was migrated by a newer release; install that one",
    ),
}


@pytest.mark.parametrize(("applied", "known", "sentence"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
async def test_a_contradiction_is_an_error_that_says_so(
    empty: asyncpg.Connection, applied: list[Migration], known: list[Migration], sentence: str
) -> None:
    await migrate(empty, applied)
    before = await tables(empty)

    for check in (migrate, verify):
        with pytest.raises(SchemaError) as raised:
            await check(empty, known)
        assert str(raised.value) == sentence
    assert await tables(empty) == before


async def test_verify_says_what_to_do_about_a_database_without_a_schema(empty: asyncpg.Connection) -> None:
    with pytest.raises(SchemaError) as raised:
        await verify(empty)
    assert str(raised.value) == "the database has no schema yet; run: python -m daemon migrate"
    assert await tables(empty) == set()


async def test_verify_names_the_migrations_that_are_missing(empty: asyncpg.Connection) -> None:
    await migrate(empty, [FIRST])
    with pytest.raises(SchemaError) as raised:
        await verify(empty, [FIRST, SECOND])
    assert str(raised.value) == "the database lacks 0002_second; run: python -m daemon migrate"


@pytest.mark.parametrize(
    "names",
    [("0001_a", "0003_c"), ("0002_b",), ("0001_a", "0001_b"), ("0000_z", "0001_a")],
    ids=["a gap", "no first one", "a repetition", "one before the first"],
)
def test_numbers_that_are_not_in_order_are_an_error(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / f"{name}.sql").write_text("SELECT 1")
    with pytest.raises(SchemaError, match="are not numbered 1, 2, 3") as raised:
        load(tmp_path)
    assert all(name in str(raised.value) for name in names)


def test_a_migration_is_known_by_its_number_its_name_and_its_text(tmp_path: Path) -> None:
    (tmp_path / "0001_first_of_all.sql").write_text("SELECT 1")
    (migration,) = load(tmp_path)
    assert (migration.version, migration.name, str(migration)) == (1, "first_of_all", "0001_first_of_all")
    assert migration.checksum != Migration(1, "first_of_all", "SELECT 2").checksum
