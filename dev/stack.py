"""The private stack: database, broker, daemon and sidecar in one folder, started in order and stopped in reverse."""

import fcntl
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO

from dev.broker import PrivateBroker
from dev.postgres import PrivatePostgres
from dev.processes import Child, ProcessError, end_orphans, free_port

ROOT = Path(__file__).parent.parent
DATABASE = "fleetwatt"


class Stack:
    """Everything that `python -m dev run` starts. The data stay in the folder, the ports are new each time."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        """`settings` are the daemon's; those of the environment apply as well, but for addresses and places."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = _lock(folder)
        end_leftovers(folder)
        self.postgres = PrivatePostgres(folder / "postgres")
        self.broker = PrivateBroker(folder / "mosquitto")
        self.metrics_port = free_port()
        self.api_port = free_port()
        self._settings = dict(settings or {})
        self._env_file = folder / "env"
        self.daemon = self._child("daemon")
        self.api = self._child("api")

    def __enter__(self) -> "Stack":
        self._env_file.unlink(missing_ok=True)
        try:
            self.postgres.start()
            self.postgres.create_database(DATABASE)
            self.broker.start()
            self.migrate()
            self.start_daemon()
            self.start_api()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def database_url(self) -> str:
        """The URL of the database."""
        return self.postgres.url(DATABASE)

    @property
    def metrics_url(self) -> str:
        """The base of the daemon's own HTTP routes."""
        return f"http://127.0.0.1:{self.metrics_port}"

    @property
    def api_url(self) -> str:
        """The base of the sidecar's routes."""
        return f"http://127.0.0.1:{self.api_port}"

    def migrate(self) -> None:
        """Bring the schema up to date."""
        command = [sys.executable, "-m", "daemon", "migrate"]
        done = subprocess.run(command, env=self._environment(), cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ProcessError(f"the schema was not migrated:\n{done.stderr}")

    def parts(self) -> list[tuple[Child, Callable[[], None]]]:
        """Each process with what starts it, those first that others need."""
        return [
            (self.postgres.process, self.postgres.start),
            (self.broker.process, self.broker.start),
            (self.daemon, self.start_daemon),
            (self.api, self.start_api),
        ]

    def start_daemon(self) -> None:
        """Start the daemon, again where it has ended, and wait until it is ready."""
        self.daemon.start(lambda: _is_ready(self.metrics_url))

    def start_api(self) -> None:
        """Start the sidecar, again where it has ended, and wait until it is ready."""
        self.api.start(lambda: _is_ready(self.api_url))

    def write_env(self) -> Path:
        """Leave the addresses for whoever wants to talk to the stack."""
        lines = {
            "MQTT_URL": self.broker.url,
            "DATABASE_URL": self.database_url,
            "API_URL": self.api_url,
            "METRICS_URL": self.metrics_url,
            "METRICS_PORT": str(self.metrics_port),  # these two for `python -m daemon check`
            "SPOOL_DIR": str(self.folder / "spool"),
        }
        self._env_file.touch(mode=0o600)
        self._env_file.write_text("".join(f"{name}={value}\n" for name, value in lines.items()), encoding="utf-8")
        return self._env_file

    def stop(self) -> None:
        """Stop everything that runs, the daemon first, so that it can write its last batch."""
        self._env_file.unlink(missing_ok=True)
        for child in (self.api, self.daemon, self.broker.process, self.postgres.process):
            child.stop()
        self._lock.close()

    def _environment(self) -> dict[str, str]:
        spool = self.folder / "spool"
        spool.mkdir(exist_ok=True)
        places = {
            "SPOOL_DIR": str(spool),
            "MQTT_URL": self.broker.url,
            "DATABASE_URL": self.database_url,
            "METRICS_HOST": "127.0.0.1",
            "METRICS_PORT": str(self.metrics_port),
            "API_HOST": "127.0.0.1",
            "API_PORT": str(self.api_port),
            "DAEMON_URLS": self.metrics_url,
        }
        ours = {**self._settings, **places}
        theirs = {name: value for name, value in os.environ.items() if name.removesuffix("_FILE") not in ours}
        return {**theirs, **ours}

    def _child(self, room: str) -> Child:
        # The environment is that of the start: the database's password is not known before.
        return Child(room, [sys.executable, "-m", room], self.folder, env=self._environment, cwd=ROOT)


def end_leftovers(folder: Path) -> None:
    """End what a stack in this folder left running when it was killed; before its files go, since they tell what."""
    for part in ("postgres", "mosquitto", "."):
        for name in end_orphans(folder / part):
            print(f"ended {name}, which an earlier run had left behind")


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:  # noqa: S310 - http, ours
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def address(variable: str, folder: Path) -> str:
    """An address from the environment, or of the stack that runs in `folder`; raises ProcessError where neither is."""
    if value := os.environ.get(variable):
        return value
    try:
        lines = (folder / "env").read_text(encoding="utf-8").splitlines()
    except OSError:
        raise ProcessError(
            f"there is no {folder / 'env'}, so nothing runs here; start it with `make run`, or set {variable}"
        ) from None
    return dict(line.split("=", 1) for line in lines)[variable]


def _lock(folder: Path) -> TextIO:
    """Held as long as the stack lives: two stacks on one folder would ruin each other."""
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ProcessError(
            f"another fleetwatt runs in {folder}; stop it, or start this one in another folder"
        ) from None
    return lock
