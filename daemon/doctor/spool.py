"""The spool's folder. While a daemon runs, its file is the daemon's alone and is not opened."""

import os
import secrets
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from daemon.doctor.findings import Finding, failure, ok, skipped, warning
from daemon.settings import DaemonSettings
from daemon.spool_file import FILE_NAME, files_of

NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "ceph",
    "glusterfs",
    "afs",
    "lustre",
    "fuse.sshfs",
    "fuse.glusterfs",
}
VOLATILE = {"tmpfs", "ramfs"}
_MOUNTS = Path("/proc/self/mountinfo")


def examine(settings: DaemonSettings, *, daemon_runs: bool) -> Sequence[Finding]:
    """Folder, filesystem, room and what waits in it."""
    names = ("spool.filesystem", "spool.space", "spool.file")
    if settings.spool_dir is None:
        remedy = (
            "set SPOOL_DIR (docs/settings.md); without it only the broker keeps readings while the database is away"
        )
        return [warning("spool.folder", "off", remedy), *(skipped(name, "there is no spool") for name in names)]
    folder = Path(settings.spool_dir)
    trouble = _try_to_write(folder)
    if trouble:
        return [trouble, *(skipped(name, "the folder cannot be used") for name in names)]
    return [
        ok("spool.folder", f"{folder} takes files of this account"),
        judge_filesystem(find_filesystem(folder)),
        _judge_space(folder, settings.spool_bytes_max),
        _judge_file(folder / FILE_NAME, daemon_runs=daemon_runs),
    ]


def _try_to_write(folder: Path) -> Finding | None:
    tried = folder / f"check-{secrets.token_hex(6)}"
    try:
        with tried.open("xb") as file:
            file.write(b"fleetwatt")
            file.flush()
            os.fsync(file.fileno())
        tried.unlink()
    except OSError as error:
        tried.unlink(missing_ok=True) if tried.is_file() else None
        text = f"{folder} cannot be written to ({error.strerror or error})"
        remedy = (
            f"make it the daemon's: install -d -m 700 -o fleetwatt -g fleetwatt {folder}; or mount its disk for writing"
        )
        return failure("spool.folder", text, remedy)
    return None


def find_filesystem(folder: Path) -> str | None:
    """The type of the filesystem that a folder is on, as the kernel calls it; None where that cannot be known."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = _MOUNTS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if words[2] == wanted:
            return words[words.index("-") + 1]
    return None


def judge_filesystem(kind: str | None) -> Finding:
    """Whether what is written there stays."""
    name = "spool.filesystem"
    remedy = "point SPOOL_DIR to a folder on a local disk, such as /var/lib/fleetwatt"
    if kind in VOLATILE:
        return warning(name, f"{kind}: a restart of the machine takes the spool with it", remedy)
    if kind in NETWORK:
        return warning(
            name, f"{kind}: a network filesystem, whose fsync and locks may promise what they do not keep", remedy
        )
    if kind == "overlay":
        return warning(name, "overlay: the spool goes with the container", "mount a volume at SPOOL_DIR")
    return ok(name, kind or "unknown here")


def _judge_space(folder: Path, bytes_max: int) -> Finding:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    taken = sum(file.stat().st_size for file in files_of(folder / FILE_NAME))
    text = f"{free / 1e9:.1f} GB free, SPOOL_BYTES_MAX takes up to {bytes_max / 1e9:.1f} GB"
    if free < bytes_max - taken:
        return warning("spool.space", text, "make room on that disk, or lower SPOOL_BYTES_MAX")
    return ok("spool.space", text)


def _judge_file(path: Path, *, daemon_runs: bool) -> Finding:
    name = "spool.file"
    if daemon_runs:
        return ok(name, "the daemon has it (daemon.spool says what waits in it)")
    if not path.exists():
        return ok(name, "none yet; the daemon makes it")
    size = sum(file.stat().st_size for file in files_of(path))
    try:
        # Without locks and without touching the journal: what stands only there is not counted, hence "at least".
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)
        try:
            (readings,) = connection.execute("SELECT coalesce(sum(readings), 0) FROM batch").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        text = f"{path.name} cannot be read ({error})"
        return warning(name, text, "start the daemon: it saves what can be read, and keeps the damaged file beside it")
    if readings:
        remedy = "start the daemon, which drains it: systemctl start fleetwatt-daemon"
        return warning(name, f"at least {readings} readings wait in it ({size / 1e6:.1f} MB)", remedy)
    return ok(name, f"empty ({size / 1e6:.1f} MB)")
