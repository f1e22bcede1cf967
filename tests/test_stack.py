"""The private stack's parts: derived configuration, child processes, ports, the lock on a folder, and replay."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dev import __main__ as command_line
from dev import processes
from dev.broker import CONFIGURATION, PrivateBroker, derive
from dev.postgres import PrivatePostgres
from dev.processes import Child, ProcessError, end_orphans, free_port, port_answers
from dev.replay import ReplayError, replay
from dev.stack import Stack

WAIT_S = 10


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


# Configuration.


@pytest.mark.parametrize(
    ("given", "differences", "derived"),
    [
        ("a 1\nb 2\n", {}, "a 1\nb 2\n"),
        ("a 1\nb 2\n", {"a": "3"}, "a 3\nb 2\n"),
        ("a 1\n", {"b": "2"}, "a 1\nb 2\n"),
        ("a 1\nb 2\n", {"a": None}, "b 2\n"),
        ("a 1\n", {"b": None}, "a 1\n"),
        ("# words\n\na 1\n   \n# b 2\n", {}, "a 1\n"),
        ("listener 8883 0.0.0.0\n", {}, "listener 8883 0.0.0.0\n"),
        ("", {}, ""),
    ],
    ids=["the same", "replaced", "added", "taken out", "not there", "comments", "a value of two words", "nothing"],
)
def test_a_configuration_is_derived(given: str, differences: dict[str, str | None], derived: str) -> None:
    assert derive(given, differences) == derived


def test_the_shipped_configuration_names_no_option_twice() -> None:
    lines = derive(CONFIGURATION.read_text(encoding="utf-8"), {}).splitlines()
    given = [line for line in CONFIGURATION.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) == len(given)


def test_the_private_broker_differs_only_where_it_must(tmp_path: Path) -> None:
    broker = PrivateBroker(tmp_path, {"max_queued_messages": "7", "autosave_interval": None})
    options = dict(line.split(" ", 1) for line in (tmp_path / "mosquitto.conf").read_text().splitlines())
    shipped = dict(line.split(" ", 1) for line in derive(CONFIGURATION.read_text(), {}).splitlines())

    assert options["listener"] == f"{broker.port} 127.0.0.1"
    assert options["max_queued_messages"] == "7"
    assert "autosave_interval" not in options
    assert not {"cafile", "certfile", "keyfile", "password_file", "acl_file"} & set(options)
    for name in ("persistence", "max_packet_size", "max_queued_bytes", "persistent_client_expiration"):
        assert options[name] == shipped[name]


# Child processes.


def at_once() -> bool:
    return True


def never() -> bool:
    return False


def child(folder: Path, script: str, stop_signal: signal.Signals = signal.SIGTERM) -> Child:
    """A Python program; `ready(child)` tells when it has said so in its log."""
    return Child("program", [sys.executable, "-uc", script], folder, stop_signal=stop_signal)


def runs(program: Child) -> bool:
    return program.is_running


def ready(program: Child) -> Callable[[], bool]:
    return lambda: "ready" in program.log_tail()


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(60)"
OBEDIENT = "import signal, sys, time\nsignal.signal(signal.{0}, lambda *_: sys.exit(7))\nprint('ready')\ntime.sleep(60)"


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_a_child_is_stopped_by_its_signal_and_tells_its_exit_code(tmp_path: Path, stop_signal: signal.Signals) -> None:
    program = child(tmp_path, OBEDIENT.format(stop_signal.name), stop_signal=stop_signal)
    program.start(ready(program))
    assert runs(program)
    assert (tmp_path / "program.pid").read_text() == str(program.pid)

    assert program.stop() == 7

    assert not runs(program)
    assert not (tmp_path / "program.pid").exists()


def test_a_child_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    program = child(tmp_path, STUBBORN)
    program.start(ready(program))
    assert program.stop(timeout_s=0.1) == -signal.SIGKILL
    assert not runs(program)


def test_a_child_is_killed(tmp_path: Path) -> None:
    program = child(tmp_path, OBEDIENT.format("SIGTERM"))
    program.start(ready(program))
    assert program.kill() == -signal.SIGKILL


def test_stopping_twice_or_before_the_start_is_safe(tmp_path: Path) -> None:
    program = child(tmp_path, OBEDIENT.format("SIGTERM"))
    assert program.stop() == 0
    program.start(ready(program))
    assert (program.stop(), program.stop(), program.kill()) == (7, 7, 7)


def test_a_child_can_be_started_again_and_its_log_goes_on(tmp_path: Path) -> None:
    program = child(tmp_path, "print('hello')")
    for _ in range(2):
        program.start(at_once)
        assert program.wait(WAIT_S) == 0
    assert program.log_tail() == "hello\nhello"


def test_a_child_that_does_not_run_has_no_pid(tmp_path: Path) -> None:
    program = child(tmp_path, OBEDIENT.format("SIGTERM"))
    with pytest.raises(ProcessError, match="program is not running"):
        _ = program.pid
    program.start(ready(program))
    program.stop()
    with pytest.raises(ProcessError, match="program is not running"):
        _ = program.pid


def test_a_child_that_fails_at_its_start_reports_the_end_of_its_log(tmp_path: Path) -> None:
    program = child(tmp_path, "import sys; [print('line', n) for n in range(100)]; sys.exit('the reason')")
    with pytest.raises(ProcessError) as raised:
        program.start(never)
    assert str(raised.value).startswith(f"program did not start; the end of {program.log}:\n")
    assert "the reason" in str(raised.value)
    assert "line 3\n" not in str(raised.value)
    assert not (tmp_path / "program.pid").exists()


def test_a_child_that_never_gets_ready_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "START_TIMEOUT_S", 0.3)
    program = child(tmp_path, STUBBORN)
    with pytest.raises(ProcessError, match="program did not start"):
        program.start(never)
    assert not runs(program)


# What an earlier parent left behind.


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that no Child knows of."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_process_that_was_left_behind_is_ended_with_its_children(tmp_path: Path) -> None:
    inner_script = "import sys; sys.stdin.read()"
    script = (
        "import subprocess, sys, time\n"
        f"inner = subprocess.Popen([sys.executable, '-c', {inner_script!r}], stdin=subprocess.PIPE)\n"
        "print('ready', inner.pid); time.sleep(60)"
    )
    program = child(tmp_path, script)
    program.start(ready(program))
    inner = psutil.Process(int(program.log_tail().split()[1]))

    assert end_orphans(tmp_path) == ["program"]

    wait_until(lambda: not runs(program))
    wait_until(lambda: not inner.is_running() or inner.status() == psutil.STATUS_ZOMBIE)
    assert list(tmp_path.glob("*.pid")) == []


def test_a_stranger_that_happens_to_have_the_pid_is_left_alone(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    pid_file = tmp_path / "program.pid"
    pid_file.write_text(str(stranger.pid))
    an_hour_ago = time.time() - 3600
    os.utime(pid_file, (an_hour_ago, an_hour_ago))

    assert end_orphans(tmp_path) == []

    assert stranger.poll() is None
    assert not pid_file.exists()


@pytest.mark.parametrize("content", ["", "no number", "999999999", "-1"])
def test_a_pid_file_that_says_nothing_is_cleared_away(tmp_path: Path, content: str) -> None:
    (tmp_path / "program.pid").write_text(content)
    assert end_orphans(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_was_left_nothing_is_ended(tmp_path: Path) -> None:
    assert end_orphans(tmp_path) == []
    assert end_orphans(tmp_path / "no such folder") == []


# Ports.


def test_a_free_port_is_free() -> None:
    port = free_port()
    assert not port_answers(port)
    with socket.create_server(("127.0.0.1", port)):
        assert port_answers(port)
        assert free_port() != port


def test_two_brokers_at_once_take_ports_of_their_own(tmp_path: Path) -> None:
    brokers = [PrivateBroker(tmp_path / name) for name in "ab"]
    try:
        for broker in brokers:
            broker.start()
        assert brokers[0].port != brokers[1].port
        assert all(broker.process.is_running for broker in brokers)
    finally:
        for broker in brokers:
            broker.process.stop()


# The database server.


def test_a_database_is_made_once_and_dropped(postgres: PrivatePostgres) -> None:
    for _ in range(2):
        postgres.create_database("made_twice")
    postgres.drop_database("made_twice")
    with pytest.raises(ProcessError, match='database "made_twice" does not exist'):
        postgres.drop_database("made_twice")


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "something").touch()
    with pytest.raises(ProcessError, match="exists but is not empty"):
        PrivatePostgres(tmp_path).start()


# The folder of a stack.


def test_a_second_stack_in_one_folder_is_refused(tmp_path: Path) -> None:
    first = Stack(tmp_path)
    try:
        with pytest.raises(ProcessError, match=f"another fleetwatt runs in {tmp_path}; stop it, or start this one"):
            Stack(tmp_path)
        Stack(tmp_path / "other").stop()
    finally:
        first.stop()
    Stack(tmp_path).stop()


def test_a_stack_whose_database_does_not_start_says_so_and_lets_go_of_its_folder(tmp_path: Path) -> None:
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "something").touch()
    with pytest.raises(ProcessError, match="exists but is not empty"), Stack(tmp_path):
        pass
    Stack(tmp_path).stop()


# Replay.


BAD_RECORDINGS = {
    "no JSON": ('{"topic": "meters/m1/reading", "payload": {}}\nrubbish\n', 2),
    "no topic": ('{"payload": {}}\n', 1),
    "no payload": ('\n\n{"topic": "meters/m1/reading"}\n', 3),
    "a number for a topic": ('{"topic": 7, "payload": {}}\n', 1),
    "cut off": ('{"topic": "meters/m1/reading", "payload": {}}\n{"topic": "met', 2),
    "a byte that is no UTF-8": ('{"topic": "\udcff", "payload": {}}\n', 1),
}


@pytest.mark.parametrize(("text", "line"), BAD_RECORDINGS.values(), ids=BAD_RECORDINGS.keys())
async def test_a_bad_line_is_named_before_anything_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int
) -> None:
    monkeypatch.setenv("MQTT_URL", f"mqtt://127.0.0.1:{free_port()}")
    recording = tmp_path / "recording.ndjson"
    recording.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ReplayError) as raised:
        await replay(recording, tmp_path)
    assert str(raised.value).startswith(f"{recording}, line {line}: ")
    assert str(raised.value).endswith('; expected {"topic": …, "payload": …}')


@pytest.mark.parametrize("name", ["missing.ndjson", "."], ids=["missing", "a folder"])
async def test_a_recording_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("MQTT_URL", f"mqtt://127.0.0.1:{free_port()}")
    with pytest.raises(ReplayError, match=f"^{tmp_path / name} cannot be read: "):
        await replay(tmp_path / name, tmp_path)


async def test_without_a_stack_replay_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MQTT_URL", raising=False)
    recording = tmp_path / "recording.ndjson"
    recording.touch()
    with pytest.raises(ProcessError, match=r"nothing runs here; start it with `make run`, or set MQTT_URL$"):
        await replay(recording, tmp_path)


def test_the_command_line_says_it_in_one_line_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MQTT_URL", f"mqtt://127.0.0.1:{free_port()}")
    monkeypatch.setattr(sys, "argv", ["dev", "replay", str(tmp_path / "missing.ndjson")])
    assert command_line.main() == 1
    said = capsys.readouterr().err
    assert said == f"fleetwatt: {tmp_path / 'missing.ndjson'} cannot be read: No such file or directory\n"


async def test_a_recording_is_published_and_what_was_acknowledged_is_told(
    tmp_path: Path, broker: PrivateBroker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MQTT_URL", raising=False)
    (tmp_path / "env").write_text(f"DATABASE_URL=postgresql://a:b=c@d/e\nMQTT_URL={broker.url}\n")
    recording = tmp_path / "recording.ndjson"
    recording.write_text('{"topic": "meters/m1/reading", "payload": {"kwhConsumedAc": 1, "voltage": 230}}\n\n' * 500)
    await replay(recording, tmp_path)
    assert "500 messages published, 500 acknowledged by the broker" in capsys.readouterr().out
