"""The queries in `sql/queries/*.sql`, by name. Each file is one statement and opens with a sentence about it."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "queries"


@cache
def query(name: str) -> str:
    """The text of `sql/queries/{name}.sql`; raises FileNotFoundError for a name that is not there."""
    return (FOLDER / f"{name}.sql").read_text(encoding="utf-8")
