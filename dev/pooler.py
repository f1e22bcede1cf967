"""A private pgbouncer in transaction mode between a database server and those who connect to it.

Its configuration is the one of docs/pgbouncer.md but for addresses, accounts and a pool that may be smaller.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from dev.processes import Child, ProcessError, free_port, is_root, port_answers

CONFIGURATION = Path(__file__).parent.parent / "deploy" / "pgbouncer.ini"
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/opt/homebrew/bin")


class PrivatePooler:
    """One pgbouncer with its files in a folder; the same port after each start."""

    def __init__(self, folder: Path, database_url: str, settings: Mapping[str, str] | None = None) -> None:
        """`database_url` is the server's own address; `settings` replace or add to those of the configuration."""
        self.port = free_port()
        self._server = urlsplit(database_url)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)  # pgbouncer does not run as root
        users = folder / "users"
        users.write_text(f'"{self._server.username}" "{self._server.password}"\n', encoding="utf-8")
        differences = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_file": str(users),
            "admin_users": str(self._server.username),
            "logfile": "",
            "pidfile": "",
            **({"user": "nobody"} if is_root() else {}),
            **(settings or {}),
        }
        database = f"* = host={self._server.hostname} port={self._server.port}"
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(
            derive(CONFIGURATION.read_text(encoding="utf-8"), database, differences), encoding="utf-8"
        )
        self.process = Child("pgbouncer", [find_pgbouncer(), "-q", str(configuration)], folder)

    @property
    def url(self) -> str:
        """The connection URL of the same database by way of the pooler."""
        return self._url(self._server.path)

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        self.process.start(lambda: port_answers(self.port))

    async def command(self, text: str) -> None:
        """Have the pooler do what its console is told, such as RELOAD, PAUSE or RESUME."""
        # Its console knows the simple protocol only, and no parameters beyond the user's name.
        connection = await asyncpg.connect(self._url("/pgbouncer"))
        try:
            await connection.execute(text)
        finally:
            connection.terminate()

    def _url(self, path: str) -> str:
        return f"postgresql://{self._server.username}:{self._server.password}@127.0.0.1:{self.port}{path}"


def derive(configuration: str, database: str, differences: Mapping[str, str]) -> str:
    """A configuration with another database section and some settings replaced or added; comments are left behind."""
    _, _, settings = configuration.partition("[pgbouncer]")
    lines = [line.partition("=") for line in settings.splitlines() if line.strip() and not line.startswith(";")]
    given = {name.strip(): value.strip() for name, _, value in lines}
    text = "".join(f"{name} = {value}\n" for name, value in {**given, **differences}.items())
    return f"[databases]\n{database}\n[pgbouncer]\n{text}"


def find_pgbouncer() -> str:
    """Its path; raises ProcessError where it is not installed."""
    found = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), *_PLACES]))
    if found is None:
        raise ProcessError("pgbouncer is not installed; `make pooler` installs it or says how")
    return found
