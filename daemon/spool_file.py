"""The spool's SQLite file: made, opened under a lock, bounded; replaced by what can be read of it where it is damaged.

A damaged file is never thrown away: it is copied aside before anything is read out of it.
"""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import structlog

from sql.settings import SettingsError

log = structlog.get_logger("fleetwatt.spool")

FILE_NAME = "spool.sqlite3"
FORMAT = 1
"""In `user_version`. A release that writes another one must read this one, too."""
PAGE_BYTES = 4096
JOURNAL_PAGES = 64
"""Beyond so many pages the journal is worked into the file. It may be longer by one batch for a moment."""
LENGTHENED_BYTES_MAX = 2**40
"""The largest spool that the settings allow; a header that names more is damaged itself."""
LOCK_TIMEOUT_S = 5.0
"""For how long the daemon that had the file before may take to end."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batch (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    spooled_at REAL NOT NULL,
    readings INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    body BLOB NOT NULL,
    is_damaged INTEGER NOT NULL DEFAULT false
) STRICT
"""
_COLUMNS = "id, spooled_at, readings, bytes, body, is_damaged"
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


_WRONG_PLACE = (FileNotFoundError, NotADirectoryError, PermissionError, FileExistsError, sqlite3.NotSupportedError)
_WRONG_PLACE_CODES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}


class DamagedError(Exception):
    """The file is no whole SQLite database."""


class SpoolFileError(Exception):
    """The file cannot be opened now: the disk is full or broken."""


def open_or_salvage(path: Path, bytes_max: int) -> sqlite3.Connection:
    """Open the file of a spool, or make it.

    Raises SettingsError where another SPOOL_DIR is needed, and SpoolFileError for what may pass, such as a full disk.
    """
    try:
        if not path.parent.is_dir():
            raise NotADirectoryError("there is no such folder")
        _finish_salvage(path)
        try:
            return _open(path, bytes_max)
        except DamagedError as error:
            _salvage(path, error)
            return _open(path, bytes_max)
    except (sqlite3.Error, OSError, DamagedError) as error:
        text = f"SPOOL_DIR is {str(path.parent)!r}, which cannot be used ({_explain(error)})"
        if isinstance(error, _WRONG_PLACE) or _code(error) in _WRONG_PLACE_CODES:
            allowed = "a folder that exists, on a local disk, writable, and not used by another daemon"
            raise SettingsError(f"{text}; allowed: {allowed}") from error
        raise SpoolFileError(text) from error


def files_of(path: Path) -> list[Path]:
    """The file and, where there is one, its journal."""
    return [file for file in (path, _journal(path)) if file.exists()]


def give_room_back(connection: sqlite3.Connection) -> None:
    """Make the file as short as what is in it, if that can be done now."""
    with contextlib.suppress(sqlite3.Error):
        connection.executescript("PRAGMA incremental_vacuum")  # `execute` would stop after one page
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def is_damage(error: Exception) -> bool:
    """Whether an error of SQLite says that the file is damaged."""
    return isinstance(error, UnicodeDecodeError) or _code(error) in _DAMAGED


def _open(path: Path, bytes_max: int) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, check_same_thread=False)
    try:
        _prepare(connection, bytes_max)
        _fsync_folder(path.parent)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter for a schema that is no text any more
        connection.close()
        if is_damage(error):
            raise DamagedError(str(error)) from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, bytes_max: int) -> None:
    file_bytes_max = bytes_max - max(bytes_max // 16, JOURNAL_PAGES * PAGE_BYTES * 2)  # the rest is the journal's
    for pragma in (
        f"page_size = {PAGE_BYTES}",
        "auto_vacuum = INCREMENTAL",
        "locking_mode = EXCLUSIVE",
        "journal_mode = WAL",
        "synchronous = FULL",  # the journal is synced at each commit
        "fullfsync = ON",  # on macOS an fsync alone stops at the disk's own cache
        f"wal_autocheckpoint = {JOURNAL_PAGES}",
        f"journal_size_limit = {JOURNAL_PAGES * PAGE_BYTES}",
        f"max_page_count = {file_bytes_max // PAGE_BYTES}",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > FORMAT:
        raise sqlite3.NotSupportedError(f"a newer release wrote it, in format {version}")
    ((found,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
    if found != "ok":
        raise DamagedError(found)
    with connection:
        connection.execute(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {FORMAT}")
    try:
        connection.execute(f"SELECT {_COLUMNS} FROM batch LIMIT 1").fetchall()  # noqa: S608 - names of ours
    except sqlite3.OperationalError as error:
        raise DamagedError(str(error)) from error


def _salvage(path: Path, error: DamagedError) -> None:
    """Put what can be read of a damaged file in its place, and leave the damaged one beside it."""
    aside = path.with_name(f"{FILE_NAME}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    _copy(path, aside)
    if _journal(path).exists():
        _copy(_journal(path), _journal(aside))
    _lengthen(path)
    unfinished = path.with_name(f"{FILE_NAME}.unfinished")
    _unlink(unfinished)
    saved = 0
    with closing(_open(unfinished, LENGTHENED_BYTES_MAX)) as target, closing(sqlite3.connect(path)) as source:
        for row in _readable(source):
            try:
                with target:
                    target.execute("INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError:  # a part of the row is gone, or it was found twice
                continue
            saved += 1
    unfinished.rename(_salvaged(path))
    _finish_salvage(path)
    log.error(
        "the spool is damaged; what could be read of it goes on to the database",
        error=str(error),
        batches_saved=saved,
        damaged_file=str(aside),
        remedy=f"sqlite3 {aside} .recover may find more",
    )


def _copy(path: Path, aside: Path) -> None:
    """Copy a file with its mode, and have it on the disk."""
    shutil.copy(path, aside)
    with aside.open("rb") as file:
        os.fsync(file.fileno())


def _lengthen(path: Path) -> None:
    """Give a file that was cut off the length that its header names: SQLite reads nothing of one that is too short."""
    with path.open("r+b") as file:
        header = file.read(100)
        if header.startswith(b"SQLite format 3\0"):
            length = int.from_bytes(header[16:18], "big") * int.from_bytes(header[28:32], "big")
            if file.seek(0, os.SEEK_END) < length <= LENGTHENED_BYTES_MAX:
                file.truncate(length)


def _finish_salvage(path: Path) -> None:
    """A salvaged file is complete and takes the place of the damaged one, also where a crash came between the two."""
    if _salvaged(path).exists():
        _unlink(path)
        _salvaged(path).rename(path)
        _fsync_folder(path.parent)


def _readable(source: sqlite3.Connection) -> Iterator[tuple[object, ...]]:
    """Each batch that can be read, one by one where SQLite stumbles over a page."""
    reached = 0
    try:
        for row in source.execute(f"SELECT {_COLUMNS} FROM batch ORDER BY id"):  # noqa: S608 - names of ours
            reached = row[0]
            yield row
    except sqlite3.DatabaseError:
        for number in range(reached + 1, _last_id(source) + 1):
            try:
                row = source.execute(f"SELECT {_COLUMNS} FROM batch WHERE id = ?", (number,)).fetchone()  # noqa: S608 - the same
            except sqlite3.DatabaseError:
                continue
            if row is not None:
                yield row


def _last_id(source: sqlite3.Connection) -> int:
    try:
        (last,) = source.execute("SELECT seq FROM sqlite_sequence WHERE name = 'batch'").fetchone() or (0,)
    except sqlite3.DatabaseError:
        return 0
    return int(last)


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _salvaged(path: Path) -> Path:
    return path.with_name(f"{path.name}.salvaged")


def _unlink(path: Path) -> None:
    for file in reversed(files_of(path)):  # the journal first: SQLite would work it into the next file of that name
        file.unlink()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: Exception) -> str:
    if _code(error) == sqlite3.SQLITE_BUSY:
        return "another daemon has its file"
    return str(error)


def _code(error: Exception) -> int:
    """SQLite's result code; 0 for an error that has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
