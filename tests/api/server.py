"""A sidecar as a process of its own, for tests that need a real socket."""

import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.processes import Child, free_port

ROOT = Path(__file__).parents[2]


class Sidecar:
    """`python -m api` on a free port."""

    def __init__(self, folder: Path, database_url: str, **changes: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {**os.environ, "LOG_FORMAT": "json", "DATABASE_URL": database_url, "API_PORT": str(self.port)}
        environment.update(changes)
        self.process = Child("api", [sys.executable, "-m", "api"], folder, env=lambda: environment, cwd=ROOT)

    def is_ready(self) -> bool:
        """Whether /readyz says so."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def sidecar(folder: Path, database_url: str, **changes: str) -> Iterator[Sidecar]:
    """A sidecar for the time of the block; it must end in good order."""
    found = Sidecar(folder, database_url, **changes)
    found.process.start(found.is_ready)
    try:
        yield found
    finally:
        code = found.process.stop()
    assert code == 0, found.process.log_tail()
