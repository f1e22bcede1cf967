"""The daemon keeps the rollups up to date by itself, and `python -m daemon rollups` makes them anew."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from structlog.testing import capture_logs

from daemon import rollups as rollups_module
from daemon.accounts import Accounts
from daemon.metrics import Metrics
from daemon.rollups import Rollups
from dev.house import eventually
from sql.measure import rollup_state
from sql.pool import Pool
from sql.rollups import KINDS
from sql.store import METER, VEHICLE
from tests.history import START, minute, series, store
from tests.test_rollups import assert_cells_are_those_of_the_history, roll_up


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollups_module, "INTERVAL_S", 0.02)
    monkeypatch.setattr(rollups_module, "FIRST_RETRY_S", 0.02)


@asynccontextmanager
async def at_work(pool: Pool, power_max_kw: float = 500) -> AsyncIterator[Metrics]:
    metrics = Metrics(Accounts(), lambda: 0.0)
    tasks = [asyncio.create_task(Rollups(pool, kind, power_max_kw, metrics).run(), name=kind.name) for kind in KINDS]
    try:
        yield metrics
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def store_two_days(database: asyncpg.Connection) -> None:
    for kind in KINDS:
        await store(database, kind, "d", series([n / 100 for n in range(2880)]))


async def test_the_daemon_rolls_up_what_there_is_and_what_comes_late(pool: Pool, database: asyncpg.Connection) -> None:
    async def done() -> bool:
        lags = [metrics.registry.get_sample_value("fleetwatt_rollup_lag_seconds", {"kind": one.name}) for one in KINDS]
        return lags == [0, 0]

    async def mended() -> bool:
        cell = await database.fetchval("SELECT samples FROM meter_hour WHERE hour = $1", START)
        return bool(cell == 61 and await database.fetchval("SELECT count(*) = 0 FROM meter_late"))

    await store_two_days(database)
    async with at_work(pool) as metrics:
        await eventually(done)
        await store(database, METER, "d", [(0.5, 0.001)])
        await eventually(mended)
    for kind in KINDS:
        await assert_cells_are_those_of_the_history(database, kind)


async def test_what_fails_is_said_and_tried_again(pool: Pool, database: asyncpg.Connection) -> None:
    async def failed() -> bool:
        return any(line["event"] == "rolling up failed, trying again" for line in logs)

    async def done() -> bool:
        return bool(await database.fetchval("SELECT count(*) > 0 FROM vehicle_day"))

    await store_two_days(database)
    await database.execute("ALTER TABLE vehicle_hour RENAME TO hidden")
    with capture_logs() as logs:
        async with at_work(pool):
            await eventually(failed)
            await database.execute("ALTER TABLE hidden RENAME TO vehicle_hour")
            await eventually(done)


async def test_another_power_than_that_of_the_rollups_is_said(pool: Pool, database: asyncpg.Connection) -> None:
    async def said() -> bool:
        return any("POWER_MAX_KW" in line["event"] for line in logs)

    await store_two_days(database)
    await roll_up(database)
    with capture_logs() as logs:
        async with at_work(pool, power_max_kw=22):
            await eventually(said)
    assert (await rollup_state(database, METER)).power_max_kw == 500


async def command(database_url: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "daemon", "rollups", *arguments],
        env={**os.environ, "DATABASE_URL": database_url, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_the_command_tells_how_far_they_are(database: asyncpg.Connection, database_url: str) -> None:
    done = await command(database_url)
    assert (done.returncode, done.stdout) == (0, "meters: nothing rolled up yet\nvehicles: nothing rolled up yet\n")

    await store_two_days(database)
    await roll_up(database)
    await store(database, VEHICLE, "d", [(0.5, 1.0)])
    meters, vehicles = (await command(database_url)).stdout.splitlines()
    assert meters.startswith("meters: rolled up through 2024-06-10 23:00 UTC")
    assert "1 marks of late readings wait" in vehicles


async def test_the_command_makes_anew_what_is_in_the_window(database: asyncpg.Connection, database_url: str) -> None:
    await store_two_days(database)
    await roll_up(database)
    await database.execute("UPDATE meter_hour SET samples = 1; UPDATE vehicle_hour SET samples = 1")

    done = await command(database_url, "rebuild", "--from", "2024-05-03", "--to", "2024-05-03T12:00")

    assert (done.returncode, done.stderr) == (0, "")
    assert "meters: made anew from 2024-05-03 00:00 to 2024-05-03 12:00 UTC" in done.stdout
    assert await database.fetchval("SELECT count(*) FROM meter_hour WHERE samples = 1") == 24
    assert await database.fetchval("SELECT max(hour) FROM vehicle_hour WHERE samples = 1") == minute(23 * 60)
    await command(database_url, "rebuild")
    for kind in KINDS:
        await assert_cells_are_those_of_the_history(database, kind)


async def test_only_a_rebuild_of_all_takes_another_power(database: asyncpg.Connection, database_url: str) -> None:
    await store_two_days(database)
    await roll_up(database)

    await command(database_url, "rebuild", "--from", "2024-05-03", POWER_MAX_KW="0.5")
    assert await database.fetchval("SELECT sum(register_impossible_steps) FROM meter_hour") == 0
    await command(database_url, "rebuild", POWER_MAX_KW="0.5")

    assert await database.fetchval("SELECT sum(register_impossible_steps) FROM meter_hour") == 2879
    assert [(await rollup_state(database, kind)).power_max_kw for kind in KINDS] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "said"),
    [
        (["rebuild", "--from", "yesterday"], {}, 2, "'yesterday' is no time; allowed: 2026-03-14 or 2026-03-14T15:00"),
        (
            ["rebuild", "--from", "2026-11-22", "--to", "2026-11-20"],
            {},
            2,
            "fleetwatt: --from is 2026-11-22 00:00 UTC, which is not before --to, 2026-11-20 00:00 UTC\n",
        ),
        (
            ["rebuild", "--from", "2026-11-22T10:00+01:00", "--to", "2026-11-22T09:00"],
            {},
            2,
            "fleetwatt: --from is 2026-11-22 09:00 UTC, which is not before --to, 2026-11-22 09:00 UTC\n",
        ),
        (["rebuild"], {"POWER_MAX_KW": "0"}, 2, "POWER_MAX_KW is '0'; allowed: kilowatts, above 0 and up to 100000"),
        ([], {"DATABASE_URL": "postgresql://127.0.0.1:1/x"}, 1, "fleetwatt: "),
    ],
)
async def test_what_is_wrong_is_said(
    database_url: str, arguments: list[str], settings: dict[str, str], code: int, said: str
) -> None:
    done = await command(database_url, *arguments, **settings)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
