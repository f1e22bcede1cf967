"""Child processes of the private stack: started with their output in a file, and always stopped.

Each child gets a session of its own, so that Ctrl-C in the terminal reaches only the parent, which then stops the
children in order. Its pid is left in a file beside its log: if the parent is killed, the next start finds and ends it.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

START_TIMEOUT_S = 30.0
OWN_PORTS = range(15_000, 32_000)
"""Below the ports that Linux, macOS and the BSDs give by themselves."""


class ProcessError(Exception):
    """A child process did not start or did not stop as it should."""


class Child:
    """One program, which can be started, stopped, killed and started again."""

    def __init__(
        self,
        name: str,
        command: list[str],
        folder: Path,
        *,
        env: Callable[[], Mapping[str, str]] | None = None,
        cwd: Path | None = None,
        account: tuple[int, int] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Log and pid file are made in `folder`; `env` is asked at each start; `account` is a user and a group id."""
        self.name = name
        self.log = folder / f"{name}.log"
        self._pid_file = folder / f"{name}.pid"
        self._command = command
        self._env = env
        self._cwd = cwd
        self._account = account
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; raises ProcessError when it is not running."""
        if self._process is None or self._process.poll() is not None:
            raise ProcessError(f"{self.name} is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self, is_ready: Callable[[], bool]) -> None:
        """Start it and wait until it is ready; raises ProcessError with the end of its log when it is not."""
        with self.log.open("ab") as log:
            user, group = self._account or (None, None)
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self._env()) if self._env else None,
                cwd=self._cwd,
                start_new_session=True,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )
        self._pid_file.write_text(str(self._process.pid), encoding="ascii")
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not is_ready():
            if not self.is_running or time.monotonic() > deadline_s:
                self.kill()
                raise ProcessError(f"{self.name} did not start; the end of {self.log}:\n{self.log_tail()}")
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it is running."""
        if self._process is not None and self.is_running:
            self._process.send_signal(number)

    def stop(self, timeout_s: float = 15.0) -> int:
        """End it in good order and return its exit code; kills it when that takes longer than `timeout_s`."""
        self.signal(self._stop_signal)
        return self.wait(timeout_s)

    def kill(self) -> int:
        """End it with SIGKILL, at once and in no order at all."""
        self.signal(signal.SIGKILL)
        return self.wait(10)

    def wait(self, timeout_s: float) -> int:
        """Wait for its end and return the exit code; kills it when that takes longer than `timeout_s`."""
        if self._process is None:
            return 0
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait(10)
        self._pid_file.unlink(missing_ok=True)
        return code

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def end_orphans(folder: Path) -> list[str]:
    """End what an earlier parent left running when it was killed; returns the names."""
    ended = []
    for pid_file in sorted(folder.glob("*.pid")):
        with contextlib.suppress(ValueError, psutil.Error):
            process = psutil.Process(int(pid_file.read_text(encoding="ascii")))
            # A pid is used again some day; a process that is older than the file is the one that was meant.
            if process.create_time() <= pid_file.stat().st_mtime + 1:
                _end_tree(process)
                ended.append(pid_file.stem)
        pid_file.unlink()
    return ended


def _end_tree(process: psutil.Process) -> None:
    family = [process, *process.children(recursive=True)]
    process.send_signal(signal.SIGINT)  # to PostgreSQL a fast shutdown, to the others an ordinary one
    _, alive = psutil.wait_procs(family, timeout=10)
    for survivor in alive:
        survivor.kill()
    psutil.wait_procs(alive, timeout=5)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now.

    Not one that the system itself would give: it gives them to outgoing connections as well, and so perhaps this one
    before it is used here.
    """
    while True:
        port = random.choice(OWN_PORTS)  # noqa: S311 - spreads, keeps no secret
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


def port_answers(port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def is_root() -> bool:
    """Whether this runs as root, whom PostgreSQL and Mosquitto do not serve under that name."""
    return os.geteuid() == 0
