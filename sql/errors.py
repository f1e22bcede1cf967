"""What an error of the database asks for.

| what came | verdict | so the caller |
| --- | --- | --- |
| 21 cardinality, 22 data, 23 constraint | `ROW` | isolates the row and rejects it |
| 08 connection, 40 rollback, 53 resources, 55 state, 57 operator | `PASSES` | keeps the rows, retries |
| 25006 read-only, 25P03 and 25P04 transaction ended for its duration | `PASSES` | the same |
| the connection broke, was refused or timed out | `PASSES` | the same; the outcome of a commit is unknown |
| 42 no such table or right, 3D no such database, 28 password, all else | `OURS` | stops loudly, keeps the batch |

The classes are those of PostgreSQL's appendix A, "PostgreSQL Error Codes".
"""

from enum import Enum

import asyncpg


class Verdict(Enum):
    """Whose fault an error is, and so what to do."""

    ROW = "row"
    PASSES = "passes"
    OURS = "ours"


_ROW_CLASSES = frozenset({"21", "22", "23"})
_PASSING_CLASSES = frozenset({"08", "40", "53", "55", "57"})
_PASSING_STATES = frozenset({"25006", "25P03", "25P04"})
"""A demoted server, and transactions that the server ended because they took or idled too long."""


class SchemaError(Exception):
    """The schema in the database is not the one that this program was made for."""


class DistributionError(Exception):
    """The tables cannot be distributed as they should be."""


def judge(error: BaseException) -> Verdict:
    """The verdict on an error that a statement, a commit or a connection attempt raised."""
    if isinstance(error, asyncpg.PostgresError):
        state = sqlstate(error)
        if state[:2] in _ROW_CLASSES:
            return Verdict.ROW
        if state[:2] in _PASSING_CLASSES or state in _PASSING_STATES:
            return Verdict.PASSES
        return Verdict.OURS
    if isinstance(error, UnicodeEncodeError):
        return Verdict.ROW
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError):
        return Verdict.OURS  # a parameter of DATABASE_URL that the driver does not know
    # Time-outs are OSErrors; an InterfaceError says that the connection cannot be used any more.
    if isinstance(error, asyncpg.InterfaceError | OSError | EOFError):
        return Verdict.PASSES
    return Verdict.OURS


def sqlstate(error: BaseException) -> str:
    """The five characters of SQLSTATE, or the name of the exception for an error that has none."""
    return getattr(error, "sqlstate", None) or type(error).__name__
