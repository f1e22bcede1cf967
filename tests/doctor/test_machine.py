"""What the doctor says of the daemon and of its spool."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from daemon.doctor.process import Problem, Process, Readings, Spool, Status, judge
from daemon.doctor.spool import examine, find_filesystem, judge_filesystem
from daemon.settings import DaemonSettings
from daemon.spool_file import FILE_NAME, open_or_salvage
from sql import __version__
from tests.doctor.conftest import StartHouse
from tests.doctor.house import House

MIB = 2**20


def look(folder: Path | str | None, *, bytes_max: int = MIB, daemon_runs: bool = False) -> dict[str, tuple[str, str]]:
    settings = DaemonSettings(
        database_url="postgresql://db/f",
        mqtt_url="mqtt://broker",
        spool_dir=None if folder is None else str(folder),
        spool_bytes_max=bytes_max,
    )
    found = examine(settings, daemon_runs=daemon_runs)
    assert all(bool(finding.remedy) == (finding.level in ("warning", "failure")) for finding in found)
    return {finding.name: (finding.level, finding.text) for finding in found}


def test_a_spool_in_order(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert found["spool.folder"][0] == found["spool.space"][0] == found["spool.file"][0] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_no_spool_is_a_warning() -> None:
    found = look(None)
    assert found["spool.folder"] == ("warning", "off")
    assert found["spool.space"][0] == "skipped"


@pytest.mark.parametrize("folder", ["missing", "file", "/proc/self"])
def test_a_folder_that_takes_no_files(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    found = look(tmp_path / folder)
    assert found["spool.folder"][0] == "failure"
    assert "cannot be written to" in found["spool.folder"][1]
    assert found["spool.file"] == ("skipped", "skipped because the folder cannot be used")


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    assert look(tmp_path, bytes_max=2**40)["spool.space"][0] == "warning"


def test_the_filesystem_is_the_kernels_word_for_it(tmp_path: Path) -> None:
    assert find_filesystem(Path("/proc")) == "proc"
    assert find_filesystem(Path("/dev/shm")) == "tmpfs"
    assert look("/dev/shm")["spool.filesystem"][0] == "warning"


@pytest.mark.parametrize(
    ("kind", "level"), [("ext4", "ok"), (None, "ok"), ("nfs4", "warning"), ("tmpfs", "warning"), ("overlay", "warning")]
)
def test_filesystems(kind: str | None, level: str) -> None:
    assert judge_filesystem(kind).level == level


def leave_readings(folder: Path) -> None:
    connection = open_or_salvage(folder / FILE_NAME, MIB)
    with connection:
        connection.execute(
            "INSERT INTO batch (spooled_at, readings, bytes, body) VALUES (0, 70, 0, x''), (0, 7, 0, x'')"
        )
    connection.close()


def test_readings_that_a_stopped_daemon_left_are_counted_and_left_alone(tmp_path: Path) -> None:
    leave_readings(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    level, text = look(tmp_path)["spool.file"]
    assert (level, "at least 77 readings" in text) == ("warning", True), text
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_file_of_a_running_daemon_is_not_opened(tmp_path: Path) -> None:
    leave_readings(tmp_path)
    holder = sqlite3.connect(tmp_path / FILE_NAME)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    assert look(tmp_path, daemon_runs=True)["spool.file"][0] == "ok"
    holder.close()


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not a database" * 1000)
    assert look(tmp_path)["spool.file"][0] == "warning"


def levels(status: Status) -> dict[str, str]:
    return {finding.name: finding.level for finding in judge(Process("127.0.0.1:9108", "runs", status))}


GOOD = {"daemon.runs": "ok", "daemon.ready": "ok", "daemon.accounts": "ok", "daemon.spool": "ok"}


@pytest.mark.parametrize(
    ("status", "changes"),
    [
        (Status(__version__, [], True, "b:1"), {}),
        (Status("0.0.1", [], True, "b:1"), {"daemon.runs": "warning"}),
        (Status(__version__, ["not subscribed"], False, "b:1", last_problem=Problem("x")), {"daemon.ready": "failure"}),
        (Status(__version__, [], True, "b:1", Readings(9, 1)), {"daemon.accounts": "failure"}),
        (Status(__version__, [], True, "b:1", Readings(9, 0, 9), Spool(30)), {}),
        (Status(__version__, [], True, "b:1", Readings(9, 0, 9), Spool(3000)), {"daemon.spool": "warning"}),
        (Status(__version__, [], True, "b:1", Readings(9, 0, 9), Spool(30, 2)), {"daemon.spool": "warning"}),
    ],
)
def test_what_a_daemon_says_of_itself(status: Status, changes: dict[str, str]) -> None:
    assert levels(status) == {**GOOD, **changes}


async def test_an_absent_daemon_and_one_that_runs(open_house: StartHouse) -> None:
    house = open_house()
    found = await house.check()
    assert (found["daemon.runs"].level, found["daemon.ready"].level) == ("failure", "skipped")
    assert "systemctl start fleetwatt-daemon" in (found["daemon.runs"].remedy or "")
    house.start_daemon()
    assert (await house.check())["daemon.ready"].level == "ok"


async def test_a_stranger_at_the_metrics_port(house: House) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", int(house.environ["METRICS_PORT"])):
        found = await house.check()
    assert found["daemon.runs"].level == "failure"
    assert "does not answer as the daemon does" in found["daemon.runs"].text
    assert found["broker.login"].level == "skipped"
