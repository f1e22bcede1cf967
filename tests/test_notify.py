"""What systemd hears: the notifier by itself, and the daemon as a process, with a real datagram socket in its place."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from daemon import service
from daemon.notify import INTERVAL_MAX_S, INTERVAL_S, STATUS_CHARACTERS_MAX, Notifier
from daemon.settings import DaemonSettings
from daemon.status import LastProblem
from dev.broker import PrivateBroker
from dev.house import ROOT, House, eventually
from dev.processes import Child, free_port
from dev.publisher import Publisher
from sql.pool import Pool, open_pool

PATIENCE_S = 20.0
WATCHDOG_S = 3.0


class Systemd:
    """The end of the notify socket that systemd holds."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(address.replace("@", "\0", 1))

    def environment(self, watchdog_s: float | None = None) -> dict[str, str]:
        """What a service with this WatchdogSec= is started with."""
        watchdog = {} if watchdog_s is None else {"WATCHDOG_USEC": str(round(watchdog_s * 1e6))}
        return {"NOTIFY_SOCKET": self.address, **watchdog}

    def heard(self) -> list[str]:
        """All that was said up to now and not taken yet."""
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(65_536).decode())
            except BlockingIOError:
                return messages

    async def hears(self, beginning: str, within_s: float = PATIENCE_S) -> str:
        """Wait for a message that begins so, over all others; raises TimeoutError when there is none."""
        async with asyncio.timeout(within_s):
            while True:
                message = (await asyncio.get_running_loop().sock_recv(self._socket, 65_536)).decode()
                if message.startswith(beginning):
                    return message

    async def keeps_watch(self) -> bool:
        """Whether a ping comes before the watchdog's time is over, which is all that systemd asks."""
        try:
            await self.hears("WATCHDOG=1", WATCHDOG_S)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """The socket goes, and its name with it."""
        self._socket.close()
        Path(self.address).unlink(missing_ok=True)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(str(tmp_path / "notify"))
    yield systemd
    systemd.close()


@asynccontextmanager
async def beating(
    notifier: Notifier, status: str = "at work", stalls: list[str | None] | None = None
) -> AsyncIterator[None]:
    """The notifier's task; `stalls` is what each beat is told, and no stall after its end."""
    told = iter(stalls or [])

    async def is_stalled() -> str | None:
        return next(told, None)

    task = asyncio.create_task(notifier.run(lambda: status, is_stalled))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def test_ready_is_said_once(systemd: Systemd) -> None:
    notifier = Notifier.from_environment(systemd.environment())
    notifier.ready()
    notifier.ready()
    assert systemd.heard() == ["READY=1"]


def test_a_status_is_one_line_and_said_when_it_is_new(systemd: Systemd) -> None:
    notifier = Notifier.from_environment(systemd.environment())
    for text in (
        "waiting for the broker",
        "waiting for the broker",
        "0 unaccounted\nREADY=1\n",
        "\udcff" + "x" * 9_999,
    ):
        notifier.status(text)
    first, second, third = systemd.heard()
    assert (first, second) == ("STATUS=waiting for the broker", "STATUS=0 unaccounted READY=1")
    assert third == "STATUS=?" + "x" * (STATUS_CHARACTERS_MAX - 1)


def test_the_end_is_said(systemd: Systemd) -> None:
    Notifier.from_environment(systemd.environment()).stopping()
    assert systemd.heard() == ["STOPPING=1"]


def test_an_abstract_address_is_understood() -> None:
    systemd = Systemd(f"@fleetwatt-test-{os.getpid()}")
    Notifier.from_environment(systemd.environment()).ready()
    assert systemd.heard() == ["READY=1"]
    systemd.close()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
async def test_without_a_socket_it_does_nothing(environ: dict[str, str]) -> None:
    notifier = Notifier.from_environment({**environ, "WATCHDOG_USEC": "1000"})
    notifier.ready()
    notifier.status("at work")
    notifier.stopping()

    async def is_stalled() -> str:
        raise AssertionError("there is nobody to tell")

    async with asyncio.timeout(PATIENCE_S):
        await notifier.run(lambda: "at work", is_stalled)


async def test_a_beat_is_a_status_and_a_ping(systemd: Systemd) -> None:
    async with beating(Notifier.from_environment(systemd.environment(0.03))):
        assert await systemd.hears("") == "STATUS=at work"
        assert await systemd.hears("") == "WATCHDOG=1"
        assert await systemd.hears("") == "WATCHDOG=1"  # the status is the same


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "30000", "WATCHDOG_PID": "1"},
    ],
)
async def test_nobody_is_pinged_who_did_not_ask_for_it(
    systemd: Systemd, watchdog: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.notify.INTERVAL_S", 0.01)
    async with beating(Notifier.from_environment(systemd.environment() | watchdog), stalls=[None, None, None, "x"]):
        await systemd.hears("STATUS=at work")
        assert await systemd.hears("") == "STATUS=stalled: x"  # three beats later, and no ping between


async def test_the_watchdog_of_this_process_is_pinged(systemd: Systemd) -> None:
    environment = systemd.environment(0.03) | {"WATCHDOG_PID": str(os.getpid())}
    async with beating(Notifier.from_environment(environment)):
        await systemd.hears("WATCHDOG=1")


@pytest.mark.parametrize(("watchdog_s", "interval_s"), [(3.0, 1.0), (90.0, INTERVAL_MAX_S), (None, INTERVAL_S)])
def test_a_beat_comes_three_times_in_the_watchdogs_time_and_often_enough_to_be_read(
    systemd: Systemd, watchdog_s: float | None, interval_s: float
) -> None:
    assert Notifier.from_environment(systemd.environment(watchdog_s)).interval_s == interval_s


async def test_a_stalled_daemon_says_so_and_pings_no_more_until_it_moves(systemd: Systemd) -> None:
    notifier = Notifier.from_environment(systemd.environment(0.03))
    with capture_logs() as logs:
        async with beating(notifier, stalls=[None, "nothing is stored", "nothing is stored"]):
            said = [await systemd.hears("") for _ in range(5)]
    assert said == ["STATUS=at work", "WATCHDOG=1", "STATUS=stalled: nothing is stored", "STATUS=at work", "WATCHDOG=1"]
    assert [(line["log_level"], line.get("reason")) for line in logs] == [
        ("error", "nothing is stored"),
        ("info", None),
    ]


async def test_a_question_without_an_answer_delays_no_ping(systemd: Systemd) -> None:
    notifier = Notifier.from_environment(systemd.environment(0.03))

    async def is_stalled() -> str | None:
        await asyncio.Event().wait()
        return "never said"

    task = asyncio.create_task(notifier.run(lambda: "at work", is_stalled))
    assert await systemd.hears("") == "STATUS=at work"
    assert await systemd.hears("") == "WATCHDOG=1"
    task.cancel()
    await asyncio.wait([task])


async def test_what_a_full_socket_did_not_take_is_said_again(systemd: Systemd) -> None:
    notifier = Notifier.from_environment(systemd.environment(0.03))
    with capture_logs() as logs:
        for number in range(10_000):
            notifier.status(f"{number}")
            if logs:
                break
        notifier.ready()
    assert [line["log_level"] for line in logs] == ["warning"]  # once, and the socket of this machine is full
    assert "READY=1" not in systemd.heard()
    async with beating(notifier):
        assert [await systemd.hears("") for _ in range(3)] == ["READY=1", "STATUS=at work", "WATCHDOG=1"]


def test_a_socket_that_is_gone_is_mentioned_once_and_found_again(systemd: Systemd) -> None:
    notifier = Notifier.from_environment(systemd.environment())
    systemd.close()
    with capture_logs() as logs:
        notifier.ready()
        notifier.status("at work")
        notifier.stopping()
    assert [line["event"] for line in logs] == ["systemd does not hear the daemon, which goes on"]
    again = Systemd(systemd.address)
    notifier.status("at work")
    assert again.heard() == ["STATUS=at work"]
    again.close()


# A service of nothing but the notifier, which hangs when it is told to.
HANGS_ON_A_SIGNAL = """
import asyncio, os, signal, time
from daemon.notify import Notifier

def hang(*_):
    time.sleep(3600)

async def is_stalled():
    return None

async def main():
    notifier = Notifier.from_environment(os.environ)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, hang)
    notifier.ready()
    await notifier.run(lambda: "at work", is_stalled)

asyncio.run(main())
"""


async def test_an_event_loop_that_hangs_pings_no_more_and_the_abort_shows_where(
    systemd: Systemd, tmp_path: Path
) -> None:
    environment = {**os.environ, **systemd.environment(WATCHDOG_S), "PYTHONFAULTHANDLER": "1"}
    service = Child("service", [sys.executable, "-c", HANGS_ON_A_SIGNAL], tmp_path, env=lambda: environment, cwd=ROOT)
    service.start(lambda: service.is_running)
    try:
        await systemd.hears("READY=1")
        assert await systemd.keeps_watch()
        service.signal(signal.SIGUSR1)
        systemd.heard()
        await silence(systemd)
        service.signal(signal.SIGABRT)  # as systemd does
        assert await asyncio.to_thread(service.wait, 10) == -signal.SIGABRT
        assert "in hang" in service.log_tail(lines=100)
    finally:
        service.kill()


async def silence(systemd: Systemd) -> None:
    """Wait until the watchdog's time went by without a ping; one may still be on its way."""

    async def is_silent() -> bool:
        return not await systemd.keeps_watch()

    await eventually(is_silent)


@pytest.fixture
def house(tmp_path: Path, broker: PrivateBroker, database_url: str, systemd: Systemd) -> Iterator[House]:
    """A daemon that systemd started, between a broker and a database; it is not started yet."""
    house = House(tmp_path, broker, database_url, **systemd.environment(WATCHDOG_S))
    yield house
    house.daemon.kill()


async def publish(broker: PrivateBroker, device: str) -> None:
    body = b'{"kwhConsumedAc": 1, "voltage": 230}'
    await Publisher(broker.port, device).publish([(f"meters/{device}/reading", body)])


async def test_a_daemon_is_ready_and_watched_before_its_broker_and_its_database_are_there(
    tmp_path: Path, systemd: Systemd, broker: PrivateBroker
) -> None:
    await asyncio.to_thread(broker.process.stop)
    nowhere = f"postgresql://nobody:x@127.0.0.1:{free_port()}/none"
    house = House(tmp_path, broker, nowhere, **systemd.environment(WATCHDOG_S))
    house.daemon.start(lambda: True)
    try:
        await systemd.hears("READY=1")
        assert "broker" in await systemd.hears("STATUS=")
        assert await systemd.keeps_watch()
        assert await systemd.keeps_watch()
        assert not house.is_ready()
        house.daemon.signal(signal.SIGTERM)
        await systemd.hears("STOPPING=1")
        assert await asyncio.to_thread(house.daemon.wait, 15) == 0
    finally:
        house.daemon.kill()


async def test_a_daemon_at_work_is_ready_first_and_stopping_last(house: House, systemd: Systemd) -> None:
    await asyncio.to_thread(house.start)
    await publish(house.broker, "m1")
    await house.settled(1)
    await systemd.hears("WATCHDOG=1")
    house.daemon.signal(signal.SIGTERM)
    await systemd.hears("STOPPING=1")
    assert await asyncio.to_thread(house.daemon.wait, 15) == 0
    assert not [message for message in systemd.heard() if message in ("READY=1", "STOPPING=1")]


async def test_a_daemon_that_is_frozen_loses_its_watch_and_has_it_again_when_it_goes_on(
    house: House, systemd: Systemd
) -> None:
    await asyncio.to_thread(house.start)
    for _ in range(3):
        assert await systemd.keeps_watch()
    house.daemon.signal(signal.SIGSTOP)
    await silence(systemd)
    house.daemon.signal(signal.SIGCONT)
    assert await systemd.keeps_watch()


async def test_a_daemon_goes_on_when_systemd_does_not_listen(house: House, systemd: Systemd) -> None:
    await asyncio.to_thread(house.start)
    await systemd.hears("READY=1")
    systemd.close()
    await publish(house.broker, "m1")
    await house.settled(1)

    async def has_noticed() -> bool:
        return "systemd does not hear the daemon" in house.daemon.log_tail()

    await eventually(has_noticed)
    assert house.is_ready()
    assert await asyncio.to_thread(house.daemon.stop) == 0


async def test_a_daemon_goes_on_when_nobody_empties_systemds_socket(house: House, systemd: Systemd) -> None:
    notifier = Notifier.from_environment(systemd.environment())
    with capture_logs() as logs:
        while not logs:
            notifier.ready()
            notifier = Notifier.from_environment(systemd.environment())
    await asyncio.to_thread(house.start)
    await publish(house.broker, "m1")
    await house.settled(1)
    systemd.heard()
    await systemd.hears("READY=1")  # dropped at the start, and said as soon as there is room
    assert await asyncio.to_thread(house.daemon.stop) == 0


@pytest.fixture
def impatient(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon in this process is watched, and called stalled after a moment."""
    for name, value in systemd.environment(1.5).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("daemon.progress.ASK_AFTER_S", 0.3)
    monkeypatch.setattr("daemon.progress.STALLED_AFTER_S", 0.9)
    monkeypatch.setattr("daemon.settle.LONGEST_RETRY_S", 0.1)


@asynccontextmanager
async def in_this_process(broker: PrivateBroker, database_url: str, **settings: Any) -> AsyncIterator[None]:
    """A daemon for the time of the block."""
    given = DaemonSettings(database_url=database_url, mqtt_url=broker.url, metrics_port=free_port(), **settings)
    stop = asyncio.Event()
    serving = asyncio.create_task(service.serve(given, LastProblem(), stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await serving


@asynccontextmanager
async def leaky_pool(*arguments: Any) -> AsyncIterator[Pool]:
    """A pool whose connections are all with somebody who does not give them back."""
    async with open_pool(*arguments) as pool, AsyncExitStack() as leaks:
        for _ in range(pool.get_max_size()):
            await leaks.enter_async_context(pool.acquire())
        yield pool


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("has_spool", [False, True])
async def test_a_wedged_pool_is_a_stall(
    systemd: Systemd,
    broker: PrivateBroker,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    has_spool: bool,
) -> None:
    monkeypatch.setattr(service, "open_pool", leaky_pool)
    monkeypatch.setattr("sql.pool.CONNECT_TIMEOUT_S", 0.2)
    spool = {"spool_dir": str(tmp_path), "spool_after_s": 0.1} if has_spool else {}
    async with in_this_process(broker, database_url, **spool):
        await systemd.hears("WATCHDOG=1")
        await publish(broker, "m1")
        said = await systemd.hears("STATUS=stalled")
        assert "readings waited and nothing stored them, though the database is free" in said
        await silence(systemd)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "trouble", ["LOCK TABLE meter_reading", "ALTER TABLE meter_reading RENAME TO meter_reading_away"]
)
async def test_a_database_that_keeps_the_writer_waiting_or_refuses_it_is_none(
    systemd: Systemd, broker: PrivateBroker, database_url: str, database: asyncpg.Connection, trouble: str
) -> None:
    async with in_this_process(broker, database_url):
        await systemd.hears("STATUS=subscribed")
        is_lock = trouble.startswith("LOCK")
        async with database.transaction() if is_lock else AsyncExitStack():
            await database.execute(trouble)
            await publish(broker, "m1")
            said = [await systemd.hears("") for _ in range(14)]  # a ping and a status each half second
        if not is_lock:
            await database.execute("ALTER TABLE meter_reading_away RENAME TO meter_reading")
    assert [line for line in said if "stalled" in line] == []
    assert said.count("WATCHDOG=1") >= 6
