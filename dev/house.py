"""The daemon as a process of its own, between a broker and a database that are given."""

import asyncio
import os
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

from dev.books import Books, parse_books
from dev.broker import PrivateBroker
from dev.processes import Child, free_port

ROOT = Path(__file__).parent.parent
PATIENCE_S = 45.0


class House:
    """A daemon with the broker and the database that it is given."""

    def __init__(self, folder: Path, broker: PrivateBroker, database_url: str, **settings: str) -> None:
        """`settings` are those of the daemon; a `MQTT_URL` among them is its way to the broker."""
        self.broker = broker
        self.database_url = database_url
        self.metrics_port = free_port()
        environment = {**os.environ, "MQTT_URL": broker.url, **settings, "DATABASE_URL": database_url}
        environment["METRICS_PORT"] = str(self.metrics_port)
        self._folder, self._environment = folder, environment
        self.daemon = self._child("daemon")

    def _child(self, name: str, *command: str) -> Child:
        environment = self._environment
        return Child(name, [sys.executable, "-m", "daemon", *command], self._folder, env=lambda: environment, cwd=ROOT)

    def run(self, command: str) -> int:
        """Run a command of `python -m daemon` in the daemon's place, and return its exit code."""
        child = self._child(command, command)
        child.start(lambda: True)
        return child.wait(PATIENCE_S)

    def start(self) -> None:
        """Start the daemon and wait until it is ready."""
        self.daemon.start(self.is_ready)

    def is_ready(self) -> bool:
        """Whether /readyz says so."""
        return self._answers("readyz")

    def is_alive(self) -> bool:
        """Whether /livez says so, which it does with nobody else there."""
        return self._answers("livez")

    def _answers(self, route: str) -> bool:
        try:
            self._get(route)
        except OSError:
            return False
        return True

    def books(self) -> Books:
        """The daemon's own counts; raises OSError where it does not answer."""
        return parse_books(self.metrics())

    def metrics(self) -> str:
        """What Prometheus gets; raises OSError where the daemon does not answer."""
        return self._get("metrics")

    def _get(self, route: str) -> str:
        url = f"http://127.0.0.1:{self.metrics_port}/{route}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())

    async def settled(self, readings: int) -> Books:
        """Wait until that many readings were received since the daemon's start and none is in flight."""

        async def enough() -> bool:
            books = self.books()
            return books.received >= readings and not books.in_flight

        await eventually(enough)
        return self.books()


async def eventually(condition: Callable[[], Awaitable[bool]], patience_s: float = PATIENCE_S) -> None:
    """Wait until a condition holds; raises TimeoutError when it does not for too long."""
    deadline_s = time.monotonic() + patience_s
    while not await condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {patience_s} s in vain for {condition.__qualname__}")
        await asyncio.sleep(0.05)
