"""The fuzzing itself: its seeds pass, it finds what is broken, and says how to see it again."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from dev.fuzz import TARGETS, fuzz
from dev.fuzz_target import Broken, Target, expect
from dev.house import ROOT


def check(data: bytes) -> None:
    """A target that does not hold."""
    expect(b"\xff\xff" not in data, "no two bytes are 255", data)


TARGET = Target(check, (b"\xff\0",), (b"\xff",), bytes_max=64)


# The codec panics where it should raise, and Python reports that beside the exception.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_what_a_target_starts_from_passes(name: str) -> None:
    target: Target = import_module(TARGETS[name]).TARGET
    for seed in (*target.seeds, *target.words, b"", b"\0", b"\xff" * 300):
        target.check(seed)
    assert max(map(len, target.seeds)) <= target.bytes_max


def test_what_breaks_a_promise_is_named() -> None:
    with pytest.raises(Broken, match=r"no two bytes are 255: \(b'\\xff\\xff',\)"):
        check(b"\xff\xff")


# setup.cfg asks for it on Linux alone: it has no wheels for other systems.
under_atheris = pytest.mark.skipif(sys.platform != "linux", reason="Atheris is installed on Linux only")


@under_atheris
def test_a_crash_is_found_told_and_can_be_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz(tmp_path, 60, {"broken": "tests.test_fuzz"}) == 1
    said = capsys.readouterr().out
    (crash,) = (tmp_path / "broken" / "crashes").iterdir()
    assert b"\xff\xff" in crash.read_bytes()
    command = [sys.executable, "-m", "dev.fuzz_child", "tests.test_fuzz", str(crash)]
    assert f"replay it with: {' '.join(command)}" in said
    assert "Broken: no two bytes are 255" in said
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode != 0


@under_atheris
def test_what_was_found_is_kept_for_the_next_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert fuzz(tmp_path, 1, {"decode": TARGETS["decode"]}) == 0
        assert "no crash" in capsys.readouterr().out
    corpus = tmp_path / "decode" / "corpus"
    seeds = import_module(TARGETS["decode"]).TARGET.seeds
    assert len(list(corpus.iterdir())) > len(seeds)
