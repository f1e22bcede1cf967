"""What an error of the database asks for: the table of `sql.errors`, row by row, and the errors of a real server."""

import asyncio
import ssl

import asyncpg
import pytest

from dev.processes import free_port
from sql.errors import Verdict, judge, sqlstate

STATES = {
    Verdict.ROW: ["21000", "22000", "22003", "22021", "22P02", "23502", "23505", "23514", "23P01"],
    Verdict.PASSES: [
        "08000",
        "08006",
        "08P01",
        "25006",
        "25P03",
        "25P04",
        "40001",
        "40P01",
        "53100",
        "53200",
        "53300",
        "55006",
        "55P03",
        "57014",
        "57P01",
        "57P03",
    ],
    Verdict.OURS: [
        "0A000",
        "25001",
        "25P02",
        "26000",
        "28000",
        "28P01",
        "3D000",
        "42501",
        "42703",
        "42P01",
        "54000",
        "58030",
        "P0001",
        "XX000",
        "ZZ999",
        "",
    ],
}


@pytest.mark.parametrize(
    ("state", "verdict"), [(state, verdict) for verdict, states in STATES.items() for state in states]
)
def test_the_class_of_an_sqlstate_decides(state: str, verdict: Verdict) -> None:
    error = asyncpg.PostgresError.new({"C": state, "M": "from the server"})
    assert judge(error) is verdict


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (asyncpg.InterfaceError("connection is closed"), Verdict.PASSES),
        (asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"), Verdict.PASSES),
        (asyncpg.CannotConnectNowError("the database system is starting up"), Verdict.PASSES),
        (asyncpg.DataError("invalid input for query argument $1"), Verdict.ROW),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), Verdict.ROW),
        (TimeoutError(), Verdict.PASSES),
        (ConnectionResetError(), Verdict.PASSES),
        (ConnectionRefusedError(), Verdict.PASSES),
        (BrokenPipeError(), Verdict.PASSES),
        (EOFError(), Verdict.PASSES),
        (ssl.SSLError(), Verdict.PASSES),
        (asyncpg.InternalClientError("asyncpg itself"), Verdict.OURS),
        (ValueError("a bug"), Verdict.OURS),
        (KeyError("a bug"), Verdict.OURS),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_without_a_server_have_a_verdict_too(error: Exception, verdict: Verdict) -> None:
    assert judge(error) is verdict


STATEMENTS = [
    ("SELECT 1 / 0", "22012", Verdict.ROW),
    ("SELECT 'x'::float8", "22P02", Verdict.ROW),
    ("INSERT INTO meter_status VALUES ('m1', now(), NULL, 230, now())", "23502", Verdict.ROW),
    ("INSERT INTO meter_reading VALUES ('m1', '1999-01-01', 1, 230, now())", "23514", Verdict.ROW),
    ("BEGIN READ ONLY; DELETE FROM meter_status", "25006", Verdict.PASSES),
    ("SET statement_timeout = 1; SELECT pg_sleep(10)", "57014", Verdict.PASSES),
    ("TABLE no_such_table", "42P01", Verdict.OURS),
    ("DO $$ BEGIN RAISE EXCEPTION 'no'; END $$", "P0001", Verdict.OURS),
]


async def test_what_a_real_server_says_is_judged(database: asyncpg.Connection) -> None:
    for statement, state, verdict in STATEMENTS:
        with pytest.raises(asyncpg.PostgresError) as raised:
            await database.execute(statement)
        assert (sqlstate(raised.value), judge(raised.value)) == (state, verdict), statement
        await database.execute("ROLLBACK; RESET ALL")


async def test_a_connection_that_is_refused_passes() -> None:
    with pytest.raises(OSError) as raised:  # noqa: PT011 - which one depends on the platform; its verdict is the point
        await asyncpg.connect(f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    assert judge(raised.value) is Verdict.PASSES


async def test_a_session_that_is_killed_passes(database: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.PostgresError) as killed:
        await database.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(asyncpg.InterfaceError) as closed:
        await database.execute("SELECT 1")
    assert (judge(killed.value), judge(closed.value)) == (Verdict.PASSES, Verdict.PASSES)


async def test_a_time_out_passes(database: asyncpg.Connection) -> None:
    with pytest.raises(TimeoutError) as raised:
        async with asyncio.timeout(0.05):
            await database.execute("SELECT pg_sleep(10)")
    assert judge(raised.value) is Verdict.PASSES


async def test_a_wrong_password_and_a_missing_database_are_ours(database_url: str) -> None:
    scheme, _, rest = database_url.rpartition("@")
    user = scheme.rpartition(":")[0]
    for url, state in ((f"{user}:wrong@{rest}", "28P01"), (f"{database_url}_missing", "3D000")):
        with pytest.raises(asyncpg.PostgresError) as raised:
            await asyncpg.connect(url)
        assert (sqlstate(raised.value), judge(raised.value)) == (state, Verdict.OURS)


def test_an_error_without_an_sqlstate_is_called_by_its_name() -> None:
    assert sqlstate(ConnectionRefusedError()) == "ConnectionRefusedError"
    assert sqlstate(asyncpg.InterfaceError("closed")) == "InterfaceError"
