"""The short rows of `make faults`: the same faults, the same load, the same checker."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from dev.fault_rows import MATRIX, Row
from dev.faults import perform
from dev.house import ROOT
from dev.stage import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A database server that the faults may kill, with all durability on."""
    with tempfile.TemporaryDirectory(prefix="fleetwatt-") as folder:
        server = Server(Path(folder))
        asyncio.run(server.start())
        yield server
        server.postgres.process.stop()


@pytest.mark.parametrize("row", [row for row in MATRIX if row.in_tests], ids=lambda row: row.name)
async def test_nothing_is_lost_and_nothing_is_there_twice(row: Row, server: Server, tmp_path: Path) -> None:
    # Less patience than pytest has, so that a failure is told in the row's own words.
    result = await perform(structs.replace(row, patience_s=30), tmp_path / "stage", server)
    if result.skipped:  # a small disk wants root and the right to mount; the text says what is missing
        pytest.skip(result.skipped)
    assert result.complaints == []


def test_every_row_is_in_the_docs_under_a_name_of_its_own() -> None:
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    for row in MATRIX:
        assert page.count(f"| {row.name} | {row.what} |\n") == 1
