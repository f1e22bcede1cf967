"""Logs for machines are one JSON object a line; none shows what was in a variable."""

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog

from sql import logs

ROOT = Path(__file__).parent.parent


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    printed = capsys.readouterr()
    assert printed.out == ""
    return [json.loads(line) for line in printed.err.splitlines()]


def fail_with_a_secret() -> None:
    password = "".join(["hunter", "2"])  # in pieces, so that the traceback's line of source does not show it
    raise ValueError(f"a password of {len(password)} characters")


def test_a_record_is_a_json_object_with_level_event_timestamp_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    structlog.get_logger("test").warning("broker away", broker="mq:1883", in_s=0.2)
    (record,) = json_lines(capsys)
    age = datetime.now(UTC) - datetime.fromisoformat(record.pop("timestamp"))
    assert timedelta(0) <= age < timedelta(minutes=1)
    assert record == {"level": "warning", "event": "broker away", "broker": "mq:1883", "in_s": 0.2}


def test_records_of_libraries_look_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    logging.getLogger("asyncio").error("task %s failed", "writer", extra={"attempt": 3})
    (record,) = json_lines(capsys)
    assert (record["level"], record["event"], record["attempt"]) == ("error", "task writer failed", 3)
    assert "timestamp" in record


@pytest.mark.parametrize(
    "value", ["zwei\nZeilen", "\ud800", "\0", b"\xff", 2**80, float("nan"), {1, 2}, object(), None]
)
def test_whatever_a_field_holds_is_one_line(capsys: pytest.CaptureFixture[str], value: Any) -> None:
    logs.configure("json", "info")
    structlog.get_logger("test").info("event", value=value)
    (record,) = json_lines(capsys)
    assert "value" in record


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_what_is_below_the_level_is_not_logged(
    capsys: pytest.CaptureFixture[str], level: Literal["debug", "info", "warning", "error"]
) -> None:
    logs.configure("json", level)
    levels = ["debug", "info", "warning", "error"]
    for name in levels:
        getattr(structlog.get_logger("test"), name)(name)
        getattr(logging.getLogger("library"), name)(name)
    expected = [name for name in levels[levels.index(level) :] for _ in range(2)]
    assert [record["event"] for record in json_lines(capsys)] == expected


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("library", [False, True])
def test_a_traceback_names_the_error_and_shows_no_variables(
    capsys: pytest.CaptureFixture[str], log_format: Literal["json", "console"], library: bool
) -> None:
    logs.configure(log_format, "info")
    log = logging.getLogger("library") if library else structlog.get_logger("test")
    try:
        fail_with_a_secret()
    except ValueError:
        log.exception("it failed")
    printed = capsys.readouterr().err
    assert "it failed" in printed
    assert "fail_with_a_secret" in printed
    assert "ValueError: a password of 7 characters" in printed
    assert "hunter2" not in printed
    if log_format == "json":
        assert len(printed.splitlines()) == 1
        assert "Traceback" in json.loads(printed)["exception"]


def test_on_the_console_a_record_is_a_line_without_colours_where_no_terminal_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("console", "info")
    structlog.get_logger("test").info("subscribed", topics=["meters/#"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "subscribed" in line
    assert "topics=['meters/#']" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("library", [False, True])
def test_on_the_console_nothing_that_is_quoted_begins_a_line_or_moves_the_cursor(
    capsys: pytest.CaptureFixture[str], library: bool
) -> None:
    logs.configure("console", "info")
    hostile = "a\n2026-01-01T00:00:00Z [error] forged\r\x1b[2J\u202e"
    if library:
        logging.getLogger("library").error("got %s", hostile)
    else:
        structlog.get_logger("test").error(hostile, topic=hostile)
    (line,) = capsys.readouterr().err.splitlines()
    assert r"a\n2026-01-01T00:00:00Z [error] forged\r\x1b[2J\u202e" in line
    assert line.isprintable()


def test_configuring_twice_does_not_log_twice(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("console", "info")
    logs.configure("json", "info")
    structlog.get_logger("test").info("once")
    assert [record["event"] for record in json_lines(capsys)] == ["once"]


def test_the_process_writes_json_lines_when_it_is_told_to() -> None:
    # Port 9 is "discard": nothing listens there, so the command says what failed.
    environ = {"DATABASE_URL": "postgresql://fleet:db-secret@127.0.0.1:9/fleet", "LOG_FORMAT": "json"}
    ended = subprocess.run(
        [sys.executable, "-m", "daemon", "migrate"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    (record,) = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (ended.returncode, record["level"], record["event"]) == (1, "error", "the schema was not migrated")
    assert "db-secret" not in ended.stderr
