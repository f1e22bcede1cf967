"""The spool on a real disk: what it took is there after a kill, in order and unchanged, and it stays within bounds."""

import asyncio
import contextlib
import random
import re
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.batch import BYTES_MAX, Batch, Contents
from daemon.readings import REASONS
from daemon.spool import Body, Spool, Spooled, SpoolError, add_decoded, encode
from daemon.spool_file import FILE_NAME, PAGE_BYTES, DamagedError
from sql.rejections import Rejection
from sql.settings import SettingsError
from sql.store import METER, VEHICLE, Row
from tests.sessions import Nobody

NOW = datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)
MEBIBYTE = 2**20
ALL = 1_000_000


def meter_row(number: int, payload: bytes = b"{}") -> Row:
    return (f"m{number}", NOW + timedelta(seconds=number), number / 1000, 230.0, NOW, payload)


def vehicle_row(number: int) -> Row:
    return (f"v{number}", NOW + timedelta(seconds=number), 50.0, number / 1000, -3.5, NOW, b"{}")


def batch_of(*rows: Row, rejections: int = 0, readings: int | None = None) -> Batch:
    batch = Batch(Nobody(), 0.0)
    for row in rows:
        batch.contents.rows.setdefault(METER if row[0].startswith("m") else VEHICLE, []).append(row)
        batch.bytes += len(row[-1])
    rejected = [Rejection(NOW, "meters/m/reading", "malformed_json", "no", b"\x00\xff{") for _ in range(rejections)]
    batch.contents.rejections += rejected
    batch.readings = len(rows) + rejections if readings is None else readings
    return batch


def numbers(spooled: Spooled | None) -> list[int]:
    """The readings of some batches, as the numbers they were made of."""
    assert spooled is not None
    return [round(row[2] * 1000) for row in spooled.contents.rows.get(METER, [])]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(str(tmp_path), 64 * MEBIBYTE)
    yield spool
    spool.close()


def size_of(folder: Path) -> int:
    """What the files of a folder take."""
    return sum(path.stat().st_size for path in folder.iterdir())


def set_aside(folder: Path) -> bytes:
    """The damaged file that was put aside."""
    (aside,) = folder.glob(f"{FILE_NAME}.damaged-*")
    return aside.read_bytes()


def noise(size: int, seed: int) -> bytes:
    """Bytes that no compression makes smaller."""
    return random.Random(seed).randbytes(size)


texts = st.text(st.characters(codec="utf-8"), max_size=40)
instants = st.integers(0, 3 * 10**15).map(lambda us: datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=us))
doubles = st.floats(allow_nan=False, allow_infinity=False)
meter_rows = st.tuples(texts, instants, doubles, doubles, instants, st.binary(max_size=60))
vehicle_rows = st.tuples(texts, instants, doubles, doubles, doubles, instants, st.binary(max_size=60))
rejections = st.builds(Rejection, instants, texts, st.sampled_from(REASONS), texts, st.binary(max_size=60))
contents = st.builds(
    Contents,
    st.fixed_dictionaries(
        {}, optional={METER: st.lists(meter_rows, min_size=1), VEHICLE: st.lists(vehicle_rows, min_size=1)}
    ),
    st.lists(rejections, max_size=5),
    st.dictionaries(st.sampled_from(REASONS), st.integers(1, 1000)).map(Counter),
)


@given(contents)
@settings(max_examples=200)
def test_what_goes_into_a_body_comes_out_of_it(written: Contents) -> None:
    read = Contents()
    add_decoded(encode(written), read)
    assert read == written
    assert all(row[1].utcoffset() == timedelta(0) for rows in read.rows.values() for row in rows)


@given(contents, st.data())
def test_a_body_with_one_bit_turned_is_refused_or_unchanged(written: Contents, data: st.DataObject) -> None:
    body = bytearray(encode(written))
    at = data.draw(st.integers(0, len(body) * 8 - 1))
    body[at // 8] ^= 1 << at % 8
    read = Contents()
    try:
        add_decoded(bytes(body), read)
    except ValueError:
        assert read == Contents()
    else:
        assert read == written  # a bit of zlib's header that means nothing to who reads


def test_a_body_names_its_columns_in_the_order_of_the_tables() -> None:
    """The spool's format follows the rows; a change of theirs is a change of the format."""
    assert [len(kind.columns) + 1 for kind in (METER, VEHICLE)] == [6, 7]
    assert Body.__struct_fields__ == ("meters", "vehicles", "rejections", "not_kept")


async def test_batches_come_out_in_the_order_in_which_they_went_in(spool: Spool) -> None:
    for number in range(10):
        await spool.put(batch_of(meter_row(number), vehicle_row(number), rejections=number % 2))
    assert spool.readings == 25
    out: list[int] = []
    while spooled := await spool.oldest(7):
        assert spooled.readings <= 7
        assert len(spooled.contents.rows[VEHICLE]) == len(numbers(spooled))
        out += numbers(spooled)
        await spool.remove(spooled)
    assert out == list(range(10))
    assert (spool.readings, spool.oldest_age_s()) == (0, 0.0)


async def test_a_batch_larger_than_what_is_asked_for_comes_alone(spool: Spool) -> None:
    await spool.put(batch_of(*map(meter_row, range(50))))
    await spool.put(batch_of(meter_row(50)))
    first = await spool.oldest(10)
    assert numbers(first) == list(range(50))


async def test_few_readings_with_much_in_them_are_not_taken_together(spool: Spool) -> None:
    """Else a spool full of messages of a megabyte would be read into memory at once."""
    for number in range(3):
        batch = batch_of(meter_row(number))
        batch.bytes = BYTES_MAX // 2 + 1
        await spool.put(batch)
    assert numbers(await spool.oldest(ALL)) == [0]


async def test_what_was_not_removed_comes_again(spool: Spool) -> None:
    await spool.put(batch_of(meter_row(1)))
    assert numbers(await spool.oldest(ALL)) == numbers(await spool.oldest(ALL)) == [1]


async def test_waiting_ends_when_something_comes(spool: Spool) -> None:
    assert await spool.oldest(ALL) is None
    waiting = asyncio.create_task(spool.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    await spool.put(batch_of(meter_row(1)))
    async with asyncio.timeout(5):
        await waiting


async def test_it_is_all_there_after_an_orderly_end(tmp_path: Path) -> None:
    first = Spool(str(tmp_path), 64 * MEBIBYTE)
    await first.put(batch_of(meter_row(1), meter_row(2)))
    await first.put(batch_of(meter_row(3)))
    first.close()
    second = Spool(str(tmp_path), 64 * MEBIBYTE)
    assert second.readings == 3
    assert second.oldest_age_s() > 0
    assert numbers(await second.oldest(ALL)) == [1, 2, 3]
    second.close()


def test_the_file_is_its_owner_s_alone(spool: Spool, tmp_path: Path) -> None:
    assert [path.stat().st_mode & 0o077 for path in tmp_path.iterdir()] == [0, 0]


# Puts one reading after the other and says so after each; killed, it may have said less than it did, never more.
PUTTING = """
import asyncio, sys
from daemon.spool import Spool
from tests.test_spool import batch_of, meter_row

async def main():
    spool = Spool(sys.argv[1], 64 * 2**20)
    for number in range(1_000_000):
        await spool.put(batch_of(meter_row(number)))
        print(number, flush=True)

asyncio.run(main())
"""


async def test_what_was_put_is_there_after_kill_9(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PUTTING, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    said = [int(await process.stdout.readline()) for _ in range(300)]
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in (await process.stdout.read()).split()]
    await process.wait()
    spool = Spool(str(tmp_path), 64 * MEBIBYTE)
    found = numbers(await spool.oldest(ALL))
    assert found[: len(said)] == said
    assert len(found) <= len(said) + 1
    spool.close()


async def fill(spool: Spool, payload_bytes: int) -> int:
    """Put readings until one is refused; returns how many it took."""
    for number in range(1000):
        try:
            await spool.put(batch_of(meter_row(number, noise(payload_bytes, number))))
        except SpoolError as error:
            assert re.search(f"full; it has .* and SPOOL_BYTES_MAX is {spool.bytes_max}", str(error))  # noqa: PT017 - the loop's end
            return number
    raise AssertionError("it took everything")


async def test_a_full_spool_says_so_takes_nothing_half_and_takes_more_when_there_is_room(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), MEBIBYTE)
    put = await fill(spool, 20_000)
    assert 10 < put < 60
    assert spool.readings == put
    first = await spool.oldest(3)
    assert first is not None
    await spool.remove(first)
    assert await fill(spool, 20_000) == 3
    assert spool.readings == put
    spool.close()


@pytest.mark.parametrize("payload_bytes", [100, 30_000])
async def test_the_files_never_take_more_than_they_may(tmp_path: Path, payload_bytes: int) -> None:
    spool = Spool(str(tmp_path), MEBIBYTE)
    put, largest = 0, 0
    with contextlib.suppress(SpoolError):
        while put < 20_000:
            rows = [meter_row(put + n, noise(payload_bytes, put + n)) for n in range(max(1, 20_000 // payload_bytes))]
            await spool.put(batch_of(*rows))
            put += len(rows)
            largest = max(largest, await asyncio.to_thread(size_of, tmp_path))
    assert MEBIBYTE * 0.5 < largest <= MEBIBYTE
    assert put < 20_000
    spool.close()


async def test_an_empty_spool_gives_the_disk_its_room_back(spool: Spool) -> None:
    await spool.put(batch_of(meter_row(1, noise(3_000_000, 1))))
    assert spool.bytes > 2_000_000
    while spooled := await spool.oldest(ALL):
        await spool.remove(spooled)
    assert spool.bytes < 20 * PAGE_BYTES


def test_two_daemons_cannot_have_one_spool(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.spool_file.LOCK_TIMEOUT_S", 0.1)
    with pytest.raises(SettingsError, match=r"SPOOL_DIR is '.*', which cannot be used \(another daemon has its file\)"):
        Spool(str(tmp_path), 64 * MEBIBYTE)


def test_a_folder_that_is_not_there_is_a_setting_to_be_corrected(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no such folder\); allowed: a folder that exists"):
        Spool(str(tmp_path / "missing"), 64 * MEBIBYTE)


# Root may write to every folder but this one, so nothing else will do where the tests run as root.
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no folder here that nobody can write to")
def test_a_folder_that_cannot_be_written_to_is_a_setting_to_be_corrected() -> None:
    with pytest.raises(SettingsError, match="SPOOL_DIR is '/proc/self', which cannot be used"):
        Spool("/proc/self", 64 * MEBIBYTE)


def test_a_spool_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    Spool(str(tmp_path), 64 * MEBIBYTE).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(SettingsError, match="a newer release wrote it, in format 99"):
        Spool(str(tmp_path), 64 * MEBIBYTE)


async def test_a_file_that_was_removed_under_the_daemon_takes_nothing(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).unlink()
    with pytest.raises(SpoolError, match="was removed or replaced under the running daemon"):
        await spool.put(batch_of(meter_row(1)))
    assert spool.readings == 0


async def test_what_cannot_be_deleted_is_not_taken_again_and_goes_when_it_can(spool: Spool, tmp_path: Path) -> None:
    await spool.put(batch_of(meter_row(1)))
    await spool.put(batch_of(meter_row(2)))
    refuse = "CREATE TRIGGER keep BEFORE DELETE ON batch BEGIN SELECT RAISE(ABORT, 'the disk is broken'); END"
    spool._connection.execute(refuse)  # the file is locked, so nobody else can break it
    first = await spool.oldest(1)
    assert first is not None
    with pytest.raises(SpoolError, match="the disk is broken"):
        await spool.remove(first)
    assert spool.readings == 1
    assert numbers(await spool.oldest(ALL)) == [2]
    spool._connection.execute("DROP TRIGGER keep")
    await spool.put(batch_of(meter_row(3)))
    assert numbers(await spool.oldest(ALL)) == [2, 3]
    assert spool._connection.execute("SELECT count(*) FROM batch").fetchone() == (2,)


async def test_a_damaged_batch_stays_is_counted_and_its_neighbours_come(tmp_path: Path) -> None:
    first = Spool(str(tmp_path), 64 * MEBIBYTE)
    for number in range(3):
        await first.put(batch_of(meter_row(number), readings=5))
    first._connection.execute("UPDATE batch SET body = zeroblob(20) WHERE id = 2")
    first._connection.commit()
    spooled = await first.oldest(ALL)
    assert spooled is not None
    assert numbers(spooled) == [0, 2]
    await first.remove(spooled)
    assert (first.readings, first.unreadable) == (5, 5)
    assert await first.oldest(ALL) is None
    first.close()
    again = Spool(str(tmp_path), 64 * MEBIBYTE)
    assert (again.readings, again.unreadable) == (5, 5)
    assert await again.oldest(ALL) is None
    again.close()


async def filled(folder: Path, batches: int) -> Path:
    """A spool's file with so many batches, each on pages of its own."""
    spool = Spool(str(folder), 64 * MEBIBYTE)
    for number in range(batches):
        await spool.put(batch_of(meter_row(number, noise(6_000, number))))
    spool.close()
    return folder / FILE_NAME


async def test_of_a_damaged_file_what_can_be_read_goes_on_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = await filled(tmp_path, 60)
    damaged = bytearray(path.read_bytes())
    for page in range(len(damaged) // PAGE_BYTES // 2, len(damaged) // PAGE_BYTES // 2 + 3):
        damaged[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = b"\xde" * PAGE_BYTES
    path.write_bytes(damaged)
    spool = Spool(str(tmp_path), 64 * MEBIBYTE)
    found: list[int] = []
    while spooled := await spool.oldest(ALL):
        found += numbers(spooled)
        await spool.remove(spooled)
    assert found == sorted(found)
    assert set(found) < set(range(60))
    assert len(found) > 50
    await spool.put(batch_of(meter_row(99)))
    assert numbers(await spool.oldest(ALL)) == [99]
    spool.close()
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.glob("*"))  # noqa: ASYNC240 - a handful of files
    assert set_aside(tmp_path)[PAGE_BYTES:] == damaged[PAGE_BYTES:]  # SQLite counts its visits in the first page


async def test_a_file_that_is_no_database_is_kept_and_a_new_one_begun(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"this is no database" * 1000)
    spool = Spool(str(tmp_path), 64 * MEBIBYTE)
    assert spool.readings == 0
    await spool.put(batch_of(meter_row(1)))
    spool.close()
    assert set_aside(tmp_path).startswith(b"this is no database")


@pytest.mark.parametrize("seed", range(20))
async def test_a_file_that_was_cut_off_anywhere_is_opened_again(tmp_path: Path, seed: int) -> None:
    path = await filled(tmp_path, 20)
    whole = path.read_bytes()
    path.write_bytes(whole[: random.Random(seed).randrange(len(whole))])
    spool = Spool(str(tmp_path), 64 * MEBIBYTE)
    left = numbers(await spool.oldest(ALL)) if spool.readings > spool.unreadable else []
    assert set(left) <= set(range(20))
    await spool.put(batch_of(meter_row(99)))
    assert numbers(await spool.oldest(ALL)) == [*left, 99]
    spool.close()


@pytest.mark.parametrize("seed", range(20))
async def test_a_file_with_bytes_overwritten_anywhere_is_opened_again(tmp_path: Path, seed: int) -> None:
    path, dice = await filled(tmp_path, 20), random.Random(seed)
    damaged = bytearray(path.read_bytes())
    for _ in range(8):
        at = dice.randrange(len(damaged))
        damaged[at : at + 64] = dice.randbytes(len(damaged[at : at + 64]))
    path.write_bytes(damaged)
    spool = Spool(str(tmp_path), 64 * MEBIBYTE)
    while spooled := await spool.oldest(ALL):
        assert set(numbers(spooled)) <= set(range(20))
        await spool.remove(spooled)
    spool.close()


async def test_a_file_that_is_damaged_under_the_daemon_ends_it_and_its_next_start_goes_on(tmp_path: Path) -> None:
    spool, found = Spool(str(tmp_path), 64 * MEBIBYTE), set[int]()
    for number in range(400):
        await spool.put(batch_of(meter_row(number, noise(9_000, number))))
    path = tmp_path / FILE_NAME
    await asyncio.to_thread(overwrite, path, path.stat().st_size // 2)
    with pytest.raises(DamagedError, match="is damaged"):
        await empty(spool, found, 1)
    spool.close()
    again = Spool(str(tmp_path), 64 * MEBIBYTE)
    await empty(again, found, ALL)
    again.close()
    assert 380 < len(found) < 400


async def empty(spool: Spool, found: set[int], readings_max: int) -> None:
    """Take everything out, and add it to what was found."""
    while spooled := await spool.oldest(readings_max):
        found.update(numbers(spooled))
        await spool.remove(spooled)


def overwrite(path: Path, at: int) -> None:
    """Eight pages of rubbish."""
    with path.open("r+b") as file:
        file.seek(at // PAGE_BYTES * PAGE_BYTES)
        file.write(b"\xde" * PAGE_BYTES * 8)


def test_every_commit_is_synced(spool: Spool) -> None:
    """A kill proves nothing of it; only a power failure would."""
    pragmas = ("synchronous", "fullfsync", "journal_mode", "locking_mode")
    found = [spool._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    assert found == [2, 1, "wal", "exclusive"]


# A disk that takes no more, by a limit of the process.
FULL_DISK = """
import resource, signal, sys
from daemon.spool import Spool
from daemon.spool_file import SpoolFileError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
try:
    Spool(sys.argv[1], 64 * 2**20)
except SpoolFileError as error:
    print(error)
"""


async def test_a_full_disk_at_the_start_is_no_wrong_setting(tmp_path: Path) -> None:
    """It may pass, so the daemon ends with code 1 and is started again."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FULL_DISK, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert b"which cannot be used (" in said


async def test_a_salvage_that_was_cut_off_is_finished(tmp_path: Path) -> None:
    """The new file is complete and stands beside the damaged one and its journal: there the crash came."""
    path = await filled(tmp_path, 5)
    path.rename(path.with_name(f"{FILE_NAME}.salvaged"))
    path.write_bytes(b"damaged")
    path.with_name(f"{FILE_NAME}-wal").write_bytes(b"of another file")
    spool = Spool(str(tmp_path), 64 * MEBIBYTE)
    assert numbers(await spool.oldest(ALL)) == list(range(5))
    spool.close()
    assert not path.with_name(f"{FILE_NAME}.salvaged").exists()
    assert not path.with_name(f"{FILE_NAME}-wal").exists()


async def test_of_a_file_that_was_cut_off_what_is_left_goes_on(tmp_path: Path) -> None:
    path = await filled(tmp_path, 40)
    path.write_bytes(path.read_bytes()[: -10 * PAGE_BYTES])
    spool = Spool(str(tmp_path), 64 * MEBIBYTE)
    found = numbers(await spool.oldest(ALL))
    assert found == sorted(found)
    assert 20 < len(found) < 40
    spool.close()


async def test_a_salvage_that_was_cut_off_before_it_was_complete_begins_anew(tmp_path: Path) -> None:
    path = await filled(tmp_path, 5)
    path.with_name(f"{FILE_NAME}.unfinished").write_bytes(b"half of it")
    path.write_bytes(path.read_bytes()[: -2 * PAGE_BYTES])
    spool = Spool(str(tmp_path), 64 * MEBIBYTE)
    assert set(numbers(await spool.oldest(ALL))) < set(range(5))
    spool.close()
    assert not path.with_name(f"{FILE_NAME}.unfinished").exists()
