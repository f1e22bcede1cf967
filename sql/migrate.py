"""Numbered migrations: each file of `sql/migrations` runs once, in order, in a transaction of its own.

`schema_migration` holds what was applied, with a checksum. A file that changed after it was applied, and a database
that knows a migration which this program does not, are errors: guessing would damage data.
"""

import hashlib
from pathlib import Path

import asyncpg
import msgspec

from sql.errors import SchemaError

FOLDER = Path(__file__).parent / "migrations"
_LOCK_KEY = 0x666C6565  # "flee"; any number will do that nobody else takes

_CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migration (
    version integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class Migration(msgspec.Struct, frozen=True):
    """One file: `0001_readings.sql` is version 1, name `readings`."""

    version: int
    name: str
    statements: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return hashlib.sha256(self.statements.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.version:04d}_{self.name}"


def load(folder: Path = FOLDER) -> list[Migration]:
    """The migrations of a folder, in order; raises SchemaError where the numbers have a gap or a repetition."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        version, _, name = path.stem.partition("_")
        found.append(Migration(int(version), name, path.read_text(encoding="utf-8")))
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise SchemaError(f"the migrations in {folder} are not numbered 1, 2, 3 …: {', '.join(map(str, found))}")
    return found


async def migrate(connection: asyncpg.Connection, migrations: list[Migration] | None = None) -> list[Migration]:
    """Apply what is missing and return it. Two that migrate at once take turns; together they apply each once."""
    migrations = load() if migrations is None else migrations
    done: list[Migration] = []
    while migration := await _apply_next(connection, migrations):
        done.append(migration)
    return done


async def _apply_next(connection: asyncpg.Connection, migrations: list[Migration]) -> Migration | None:
    """Apply the first that is missing, if one is. The lock ends with the transaction: a session may be anybody's."""
    async with connection.transaction():
        await wait_for_turn(connection)
        await connection.execute(_CREATE_TABLE)
        missing = _missing(migrations, await _applied(connection))
        if not missing:
            return None
        migration = missing[0]
        await connection.execute(migration.statements)
        await connection.execute(
            "INSERT INTO schema_migration (version, name, checksum) VALUES ($1, $2, $3)",
            migration.version,
            migration.name,
            migration.checksum,
        )
        return migration


async def wait_for_turn(connection: asyncpg.Connection) -> None:
    """Wait until nobody else changes the schema; nobody does until the transaction ends."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)


async def verify(connection: asyncpg.Connection, migrations: list[Migration] | None = None) -> None:
    """Raise SchemaError unless the database has exactly the schema of this program."""
    migrations = load() if migrations is None else migrations
    if await connection.fetchval("SELECT to_regclass('schema_migration')") is None:
        raise SchemaError("the database has no schema yet; run: python -m daemon migrate")
    if missing := _missing(migrations, await _applied(connection)):
        raise SchemaError(f"the database lacks {', '.join(map(str, missing))}; run: python -m daemon migrate")


async def _applied(connection: asyncpg.Connection) -> dict[int, tuple[str, str]]:
    rows = await connection.fetch("SELECT version, name, checksum FROM schema_migration ORDER BY version")
    return {row["version"]: (row["name"], row["checksum"]) for row in rows}


def _missing(migrations: list[Migration], applied: dict[int, tuple[str, str]]) -> list[Migration]:
    """What is not applied yet; raises SchemaError where program and database contradict each other."""
    known = {migration.version: migration for migration in migrations}
    for version, (name, checksum) in applied.items():
        if version not in known:
            raise SchemaError(
                f"the database has migration {version:04d}_{name}, which this program does not know: "
                "it was migrated by a newer release; install that one"
            )
        if known[version].checksum != checksum:
            raise SchemaError(
                f"migration {known[version]} was changed after it was applied to this database; "
                "restore the file and put the change into a new migration"
            )
    return [migration for migration in migrations if migration.version not in applied]
