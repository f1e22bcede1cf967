"""The sidecar attacked from its own document: every check of schemathesis, for a bounded time, finds nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.api.server import ROOT, sidecar

SECONDS = os.environ.get("SCHEMATHESIS_SECONDS", "10")


@pytest.mark.timeout(int(SECONDS) + 120)
def test_schemathesis_finds_nothing(
    database_url: str, tokens: Callable[[], tuple[str, dict[str, str]]], tmp_path: Path
) -> None:
    path, made = tokens()
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", "--checks", "all", "--max-time", SECONDS]
    command += ["--no-shrink", "--continue-on-failure", "-H", f"Authorization: Bearer {made['admin']}"]
    with sidecar(tmp_path, database_url, API_TOKENS_FILE=path) as served:
        done = subprocess.run(
            [*command, f"{served.url}/openapi.json"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        log = served.process.log.read_text(encoding="utf-8")
    assert done.returncode == 0, done.stdout[-8000:]
    assert "request failed" not in log
