"""Where it was measured: the machine, the versions and the settings that matter."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import asyncpg
import psutil

from dev.bench.bed import MEBIBYTE
from dev.broker import PrivateBroker

PACKAGES = ("aiomqtt", "asyncpg", "mqtt5", "msgspec", "paho-mqtt", "uvloop")
POSTGRES_SETTINGS = (
    "synchronous_commit",
    "fsync",
    "full_page_writes",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "wal_compression",
)
BROKER_SETTINGS = ("persistence", "autosave_interval", "max_queued_messages", "max_queued_bytes")


def describe_machine(folder: Path) -> dict[str, str]:
    """Processor, memory, and what the folder lies on."""
    found = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    partition = max(
        (part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)),
        key=lambda part: len(part.mountpoint),
        default=None,
    )
    return {
        "processor": found[1] if found else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / MEBIBYTE / 1024:.1f} GiB",
        "filesystem": f"{partition.fstype} on {partition.device}" if partition else "unknown",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


async def describe_versions(broker: PrivateBroker, connection: asyncpg.Connection) -> dict[str, str]:
    """Of all that is measured."""
    return {
        "Python": platform.python_version(),
        "PostgreSQL": str(await connection.fetchval("SHOW server_version")),
        "Mosquitto": _version_of_broker(broker),
        **{name: version(name) for name in PACKAGES},
    }


async def describe_settings(broker: PrivateBroker, connection: asyncpg.Connection) -> dict[str, str]:
    """Of PostgreSQL and the broker; those of the daemon are its defaults."""
    configuration = dict(line.split(" ", 1) for line in broker.configuration.read_text(encoding="utf-8").splitlines())
    return {
        **{name: str(await connection.fetchval(f"SHOW {name}")) for name in POSTGRES_SETTINGS},
        **{name: configuration[name] for name in BROKER_SETTINGS},
    }


def _version_of_broker(broker: PrivateBroker) -> str:
    found = re.search(r"mosquitto version (\S+) starting", _read(broker.process.log))
    return found[1] if found else "unknown"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
