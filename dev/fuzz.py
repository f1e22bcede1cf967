"""Coverage-guided fuzzing of what comes from outside: each target in a process of its own, and what came of it.

A target's folder has `corpus` (inputs that reached something new, kept from run to run), `crashes` and `log`.
"""

import hashlib
import os
import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

from msgspec import Struct

from dev.fuzz_target import Target

TARGETS = {"decode": "dev.fuzz_decode", "packets": "dev.fuzz_packets"}
SLOW_S = 10
"""An input that takes longer is a finding."""
MEMORY_MB_MAX = 1024
_STATUS = re.compile(rb"cov: (\d+) ft: (\d+)")
_EXECUTIONS = re.compile(rb"stat::number_of_executed_units: +(\d+)")


class Outcome(Struct, frozen=True):
    """What came of fuzzing one target."""

    executions: int
    coverage: int
    features: int
    corpus: int
    seconds: float
    crash: Path | None


def fuzz(folder: Path, seconds: int, targets: dict[str, str] = TARGETS) -> int:
    """Fuzz each target for that long; returns the exit code, which is 1 where something broke."""
    crashed = False
    for name, module in targets.items():
        print(f"{name}: fuzzing for {seconds} s, the log is {folder / name / 'log'}", flush=True)
        outcome = _run(folder / name, module, seconds)
        print(
            f"{name}: {outcome.executions:,} executions in {outcome.seconds:.0f} s, coverage {outcome.coverage}, "
            f"features {outcome.features}, {outcome.corpus} inputs in the corpus, "
            f"{'A CRASH' if outcome.crash else 'no crash'}",
            flush=True,
        )
        if outcome.crash:
            crashed = True
            _tell_of_crash(module, outcome.crash)
    return int(crashed)


def _run(folder: Path, module: str, seconds: int) -> Outcome:
    corpus, crashes, log = folder / "corpus", folder / "crashes", folder / "log"
    for each in (corpus, crashes):
        each.mkdir(parents=True, exist_ok=True)
    target: Target = import_module(module).TARGET
    _plant(corpus, folder / "words", target)
    before = {path: path.stat().st_mtime_ns for path in crashes.iterdir()}
    started_at_s = time.monotonic()
    with log.open("wb") as output:
        code = subprocess.run(
            [
                *_command(module),
                f"-max_total_time={seconds}",
                f"-max_len={target.bytes_max}",
                f"-dict={folder / 'words'}",
                f"-artifact_prefix={crashes}/",
                f"-timeout={SLOW_S}",
                f"-rss_limit_mb={MEMORY_MB_MAX}",
                "-print_final_stats=1",
                "-close_fd_mask=3",  # the codec's panics are written to standard error, each with its place
                str(corpus),
            ],
            env={**os.environ, "RUST_BACKTRACE": "0"},  # nor need each of them be explained
            stdout=output,
            stderr=output,
            check=False,
        ).returncode
    written = [path for path in crashes.iterdir() if before.get(path) != path.stat().st_mtime_ns]
    said = log.read_bytes()
    status, executions = _STATUS.findall(said), _EXECUTIONS.findall(said)
    return Outcome(
        executions=int(executions[-1]) if executions else 0,
        coverage=int(status[-1][0]) if status else 0,
        features=int(status[-1][1]) if status else 0,
        corpus=sum(1 for _ in corpus.iterdir()),
        seconds=time.monotonic() - started_at_s,
        crash=(written[0] if written else log) if code else None,
    )


def _command(module: str) -> list[str]:
    return [sys.executable, "-m", "dev.fuzz_child", module]


def _plant(corpus: Path, words: Path, target: Target) -> None:
    """Seeds go into the corpus under the name that libFuzzer would give them; words into a file of its own form."""
    for seed in target.seeds:
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    lines = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words)
    words.write_text("".join(f'"{line}"\n' for line in lines), encoding="ascii")


def _tell_of_crash(module: str, crash: Path) -> None:
    command = [*_command(module), str(crash)]
    if crash.name == "log":  # it broke down without an input that is to blame
        print(f"  {crash}", flush=True)
        lines = crash.read_text(encoding="utf-8", errors="replace").splitlines()
    else:
        print(f"  {crash}\n  replay it with: {' '.join(command)}", flush=True)
        said = subprocess.run(command, capture_output=True, check=False, text=True, errors="replace")
        lines = (said.stdout + said.stderr).splitlines()
    print("".join(f"  | {line[:500]}\n" for line in lines[-20:]), end="", flush=True)
