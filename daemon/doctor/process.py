"""The daemon that runs, asked for its own `/status`."""

import asyncio
import http.client
import socket
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from daemon.doctor.findings import Finding, failure, ok, skipped, warning
from daemon.settings import DaemonSettings
from sql import __version__

TIMEOUT_S = 5.0
SPOOL_OLDEST_S_MAX = 600.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not listened on

State = Literal["runs", "silent", "absent"]
"""`silent`: something listens there, and does not answer as a daemon does."""


class Readings(Struct, frozen=True):
    """Of the books, what is looked at."""

    received: int = 0
    unaccounted: int = 0
    spooled: int = 0


class Spool(Struct, frozen=True, rename="camel"):
    """Of the spool, what is looked at."""

    oldest_s: float = 0.0
    unreadable: int = 0


class Problem(Struct, frozen=True):
    """The last one of the log."""

    text: str


class Status(Struct, frozen=True, rename="camel"):
    """Of `/status`, what is looked at. What has no default makes it a daemon's; another release may lack the rest."""

    version: str
    faults: list[str]
    subscribed: bool
    broker: str
    readings: Readings = Readings()
    spool: Spool | None = None
    last_problem: Problem | None = None


class Process(Struct, frozen=True):
    """What was found where the daemon should be."""

    address: str
    state: State
    status: Status | None = None


async def ask(settings: DaemonSettings) -> Process:
    """Ask it; never raises."""
    host = _EVERYWHERE.get(settings.metrics_host, settings.metrics_host)
    address = f"[{host}]:{settings.metrics_port}" if ":" in host else f"{host}:{settings.metrics_port}"
    return await asyncio.to_thread(_ask, address)


def _ask(address: str) -> Process:
    # No proxy: the environment may name one, and this is our own machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/status", timeout=TIMEOUT_S) as answer:
            return Process(address, "runs", msgspec.json.decode(answer.read(), type=Status))
    except urllib.error.HTTPError:
        return Process(address, "silent")
    except urllib.error.URLError as error:
        is_absent = isinstance(error.reason, ConnectionRefusedError | socket.gaierror)
        return Process(address, "absent" if is_absent else "silent")
    except (OSError, http.client.HTTPException, ValueError):
        return Process(address, "silent")


def judge(process: Process) -> Sequence[Finding]:
    """Whether it runs, works and keeps its books."""
    names = ("daemon.ready", "daemon.accounts", "daemon.spool")
    if process.status is not None:
        return [
            _judge_version(process.address, process.status),
            _judge_readiness(process.status),
            _judge_accounts(process.status.readings),
            _judge_spool(process.status),
        ]
    if process.state == "absent":
        remedy = "systemctl start fleetwatt-daemon; journalctl -u fleetwatt-daemon -n 20"
        found = failure("daemon.runs", f"nothing answers at {process.address}: the daemon does not run here", remedy)
        return [found, *(skipped(name, "no daemon runs here") for name in names)]
    remedy = "systemctl restart fleetwatt-daemon, or correct METRICS_HOST and METRICS_PORT"
    found = failure("daemon.runs", f"what listens at {process.address} does not answer as the daemon does", remedy)
    return [found, *(skipped(name, "the daemon does not answer") for name in names)]


def _judge_version(address: str, status: Status) -> Finding:
    if status.version != __version__:
        text = f"version {status.version} answers at {address}, and {__version__} is installed"
        return warning("daemon.runs", text, "systemctl restart fleetwatt-daemon")
    return ok("daemon.runs", f"version {status.version} answers at {address}")


def _judge_readiness(status: Status) -> Finding:
    if not status.faults:
        return ok("daemon.ready", "commits follow arrivals")
    text = "; ".join(status.faults)
    if status.last_problem:
        text += f"; its last words: {status.last_problem.text}"
    remedy = "mend what fails below; if nothing does: journalctl -u fleetwatt-daemon -n 20"
    return failure("daemon.ready", text, remedy)


def _judge_accounts(readings: Readings) -> Finding:
    if readings.unaccounted:
        text = f"{readings.unaccounted} of {readings.received} readings are unaccounted for"
        return failure("daemon.accounts", text, "this is a bug: journalctl -u fleetwatt-daemon > log, and report it")
    return ok("daemon.accounts", f"0 unaccounted of {readings.received} readings since its start")


def _judge_spool(status: Status) -> Finding:
    name, spooled = "daemon.spool", status.readings.spooled
    if status.spool is None:
        return ok(name, "the daemon has none")
    if status.spool.unreadable:
        text = f"{status.spool.unreadable} readings in it cannot be read back"
        return warning(name, text, "nothing stands still for them; keep a copy of the file and report it")
    if spooled and status.spool.oldest_s > SPOOL_OLDEST_S_MAX:
        text = f"{spooled} readings wait in it, the oldest for {status.spool.oldest_s / 60:.0f} min"
        return warning(name, text, "mend what fails under database; the daemon then drains it by itself")
    return ok(name, f"{spooled} readings wait in it")
