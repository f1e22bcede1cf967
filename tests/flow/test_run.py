"""`python -m dev run` as a person uses it."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from dev.house import ROOT, eventually


async def start(folder: Path, **variables: str) -> asyncio.subprocess.Process:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FLEETWATT_TEST": str(folder), **variables}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dev", "run"), cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE
    )


async def finish(process: asyncio.subprocess.Process) -> str:
    printed, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, printed.decode()
    return printed.decode()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the database's account can get to, whatever another pytest does to its own."""
    with tempfile.TemporaryDirectory(prefix="fleetwatt-") as folder:
        yield Path(folder)


def processes_of(folder: Path) -> list[list[str]]:
    """Command lines of the servers, which name the folder, and of what runs in it."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = process.info["cmdline"] or []
        if str(folder) in " ".join([*words, (process.info["environ"] or {}).get("FLEETWATT_TEST", "")]):
            found.append(words)
    return found


async def test_two_folders_at_once_do_not_disturb_each_other_and_every_reading_is_accounted_for(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
    runs = [await start(folder / name, FLEET="10", SECONDS="3") for name in ("one", "two")]
    for printed in await asyncio.gather(*map(finish, runs)):
        unaccounted = next(line for line in printed.splitlines() if "unaccounted" in line)
        assert " 0 " in unaccounted
    assert processes_of(folder) == []


async def test_a_second_start_on_the_same_data_doubles_nothing(folder: Path) -> None:
    first = await finish(await start(folder, FLEET="5", SECONDS="1"))
    (folder / ".fleetwatt" / "fleet.json").unlink()  # even if the fleet forgets what it sent
    second = await finish(await start(folder, FLEET="5", SECONDS="1"))
    assert count(first, "stored, meters") > 7000
    assert count(second, "stored, meters") < 100
    assert count(second, "duplicate") > 14000
    assert "conflict" not in second


async def test_ctrl_c_stops_all_of_it(folder: Path) -> None:
    process = await start(folder, FLEET="0")
    env_file = folder / ".fleetwatt" / "env"

    async def ready() -> bool:
        return env_file.exists() and "METRICS_URL" in env_file.read_text()

    await eventually(ready)
    addresses = dict(line.split("=", 1) for line in env_file.read_text().splitlines())
    connection = await asyncpg.connect(addresses["DATABASE_URL"])
    assert await connection.fetchval("SELECT count(*) FROM meter_reading") == 0
    await connection.close()
    assert len(processes_of(folder)) > 3
    process.send_signal(signal.SIGINT)
    await finish(process)
    assert processes_of(folder) == []
    assert not env_file.exists()


async def test_what_is_killed_is_started_again_and_nothing_is_lost(folder: Path) -> None:
    process = await start(folder, FLEET="5", SECONDS="8")
    stack = folder / ".fleetwatt"

    async def ready() -> bool:
        return (stack / "env").exists()

    await eventually(ready)
    for name in ("daemon", "postgres/postgres", "api"):
        os.kill(int((stack / f"{name}.pid").read_text()), signal.SIGKILL)
    printed = await finish(process)
    for name in ("daemon", "postgres", "api"):
        assert f"{name} ended (code -9); starting it again" in printed


async def test_ctrl_c_ends_a_run_whose_broker_does_not_answer(folder: Path) -> None:
    process = await start(folder, FLEET="5")
    stack = folder / ".fleetwatt"

    async def ready() -> bool:
        return (stack / "env").exists()

    await eventually(ready)
    os.kill(int((stack / "mosquitto" / "mosquitto.pid").read_text()), signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), 100)
    assert processes_of(folder) == []


def count(printed: str, name: str) -> int:
    """The number beside a name in the table."""
    line = next(line for line in printed.splitlines() if name in line)
    return int(line.split("│")[2].strip().replace(",", ""))
