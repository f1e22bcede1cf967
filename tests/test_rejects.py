"""`python -m daemon rejections` as a technician has it: what it prints, what it changes, how it ends."""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from daemon.__main__ import main
from daemon.rejects import instant, list_text, show_text
from sql import rejections
from sql.rejections import Chosen, Group, Groups, Rejection, Shown

ROOT = Path(__file__).parent.parent
NOW = datetime.now(UTC).replace(microsecond=0)
THEN = NOW - timedelta(hours=2)
GOOD = b'{"kwhConsumedAc": 1.5, "voltage": 230, "timestamp": "%s"}' % THEN.isoformat().encode()
ESCAPE = b'{"a": "\x1b[31m\x9b\xc2\x9b\x07"}'

Run = Callable[..., tuple[int, str, str]]


def rejected(
    payload: bytes, reason: str = "clock_ahead", device: str = "m1", received_at: datetime = THEN
) -> Rejection:
    return Rejection(received_at, f"meters/{device}/reading", reason, f"it is {reason}", payload)


@pytest.fixture
def keep(database_url: str) -> Callable[[Sequence[Rejection]], list[int]]:
    """Put rejections into the table; gives all ids that are there then."""

    def keep(given: Sequence[Rejection]) -> list[int]:
        async def insert() -> list[int]:
            connection = await asyncpg.connect(database_url)
            await rejections.insert(connection, given)
            kept = await rejections.fetch(connection, Chosen(), None, 1000, 10**9)
            await connection.close()
            return [each.id for each in kept]

        return asyncio.run(insert())

    return keep


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; gives exit code, standard output and standard error."""

    def run(*arguments: str, **settings: str) -> tuple[int, str, str]:
        monkeypatch.delenv("MQTT_URL", raising=False)
        for name, value in {"DATABASE_URL": database_url, **settings}.items():
            monkeypatch.setenv(name, value)
        try:
            code = main(["rejections", *arguments])
        except SystemExit as ended:  # argparse's own
            code = int(str(ended.code))
        return code, *capsys.readouterr()

    return run


def cells(line: str) -> list[str]:
    return line.split()


def test_without_an_action_they_are_listed_by_reason_and_device(run: Run, keep: Any) -> None:
    minute = timedelta(minutes=1)
    ids = keep(
        [rejected(b"%d" % n, received_at=THEN + n * minute) for n in range(3)]
        + [rejected(b"", "too_old", "m2", THEN), Rejection(THEN, "http", "too_old", "x", b"")]
    )
    code, out, err = run()
    head, *lines = out.splitlines()
    assert (code, err) == (0, "")
    assert cells(head)[:3] == ["count", "reason", "device"]
    first, last = (f"{time:%Y-%m-%d %H:%M:%S}" for time in (THEN, THEN + 2 * minute))
    assert cells(lines[0])[:7] == ["3", "clock_ahead", "m1", *first.split(), *last.split()]
    assert lines[0].endswith(f" {ids[-1]}  it is clock_ahead")
    assert [cells(line)[:3] for line in lines[1:3]] == [["1", "too_old", "-"], ["1", "too_old", "m2"]]
    assert lines[4] == "5 rejections in 3 groups"
    assert run("list") == (0, out, "")


def test_an_empty_table_is_no_error(run: Run) -> None:
    for arguments in ((), ("list",)):
        assert run(*arguments) == (0, "there are no such rejections\n", "")
    assert run("replay", "--yes") == (0, "there are no rejections to replay\n", "")
    assert json.loads(run("list", "--json")[1]) == {"items": [], "groups": 0, "rejections": 0, "isComplete": True}


@pytest.mark.parametrize("order", [0, 1], ids=["filter first", "action first"])
def test_a_filter_counts_before_the_action_and_behind_it(run: Run, keep: Any, order: int) -> None:
    later = THEN + timedelta(hours=1)
    keep([rejected(b"a"), rejected(b"b", "too_old"), rejected(b"c", device="m2"), rejected(b"d", received_at=later)])
    for filters, count in (
        (["--reason", "too_old"], 1),
        (["--device", "m1"], 3),
        (["--since", "90m"], 1),
        (["--until", later.isoformat()], 3),
        (["--device", "m2", "--reason", "too_old"], 0),
    ):
        for action in ("list", "replay"):
            arguments = [*filters, action] if order == 0 else [action, *filters]
            assert json.loads(run(*arguments, "--json")[1])["rejections"] == count, arguments
    assert json.loads(run("--json", "--limit", "2", "replay")[1])["rejections"] == 2


def test_show_has_all_that_came_and_nothing_a_terminal_obeys(run: Run, keep: Any) -> None:
    (number,) = keep(
        [Rejection(THEN, "meters/m\x1b[2J/reading", "bad_id", "say \x07", ESCAPE.replace(b"\x9b", b"", 1))]
    )
    code, out, _ = run("show", str(number))
    assert code == 0
    assert "\\x1b[31m\\x9b\\x07" in out
    assert "meters/m\\x1b[2J/reading" in out
    assert "say \\x07" in out
    assert all(character.isprintable() or character == "\n" for character in out)


def test_show_dumps_what_is_no_text(run: Run, keep: Any) -> None:
    (number,) = keep([rejected(ESCAPE)])
    out = run("show", str(number))[1]
    assert '00000000  7b 22 61 22 3a 20 22 1b  5b 33 31 6d 9b c2 9b 07  |{"a": ".[31m....|' in out
    shown = json.loads(run("show", str(number), "--json")[1])
    assert (shown["payload"], shown["payloadBytes"], shown["device"]) == (None, len(ESCAPE), "m1")


def test_show_raw_writes_the_bytes_and_nothing_else(keep: Any, database_url: str) -> None:
    payload = bytes(range(256)) * 100
    (number,) = keep([rejected(payload)])
    command = [sys.executable, "-m", "daemon", "rejects", "show", str(number), "--raw"]
    environment = {**os.environ, "DATABASE_URL": database_url}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (payload, b"")


def test_show_cuts_a_large_payload_and_says_so() -> None:
    shown = Shown(1, THEN, "http", "-", "too_large", "", 1_000_000, "x" * 10, None)
    assert "… and 999,990 bytes more; --raw writes all of it" in show_text(shown)


def test_a_replay_says_what_it_would_do_until_it_is_told_to(run: Run, keep: Any) -> None:
    keep([rejected(GOOD), rejected(GOOD, received_at=THEN + timedelta(seconds=1)), rejected(b"{", "malformed_json")])
    for _ in range(2):
        code, out, err = run("replay")
        assert (code, err) == (0, "")
        assert cells(out.splitlines()[1]) == ["clock_ahead", "2", "1", "1", "0", "-"]
        assert cells(out.splitlines()[2]) == ["malformed_json", "1", "0", "0", "1", "malformed_json", "1"]
        assert "the same command with --yes does it" in out
    code, done, _ = run("replay", "--yes")
    assert (code, [cells(line) for line in done.splitlines()[1:3]]) == (
        0,
        [cells(line) for line in out.splitlines()[1:3]],
    )
    assert "would" not in done
    assert cells(run("list")[1].splitlines()[1])[:2] == ["1", "malformed_json"]
    assert "none of them passes" in run("replay", "--yes")[1]


def test_what_a_replay_believes_is_a_setting(run: Run, keep: Any) -> None:
    ahead = (NOW + timedelta(hours=1)).isoformat().encode()
    keep([rejected(b'{"kwhConsumedAc": 1, "voltage": 1, "timestamp": "%s"}' % ahead)])

    def stored(**settings: str) -> int:
        return int(json.loads(run("replay", "--json", **settings)[1])["outcomes"][0]["stored"])

    assert stored() == 0
    assert stored(CLOCK_AHEAD_MAX_S="7200") == 1


def test_only_those_with_an_id_are_replayed(run: Run, keep: Any) -> None:
    ids = keep([rejected(b"%d" % n) for n in range(5)])
    found = json.loads(run("replay", "--id", str(ids[0]), "--id", str(ids[3]), "--json")[1])
    assert (found["dryRun"], found["rejections"], found["next"]) == (True, 2, None)
    assert "that was --limit" in run("replay", "--limit", "4")[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["show", "1234"], "there is no rejection 1234; it may have been replayed or purged"),
        (["list"], "the database has no schema yet; run: python -m daemon migrate"),
    ],
)
def test_what_cannot_be_done_is_a_line_and_exit_code_1(
    run: Run, postgres: Any, arguments: list[str], sentence: str
) -> None:
    settings = {"DATABASE_URL": postgres.url("postgres")} if arguments == ["list"] else {}
    assert run(*arguments, **settings) == (1, "", f"fleetwatt: {sentence}\n")


def test_a_database_that_is_away_is_a_line_and_exit_code_1(run: Run) -> None:
    code, out, err = run("list", DATABASE_URL="postgresql://fleet@127.0.0.1:1/none")
    assert (code, out) == (1, "")
    assert err.startswith("fleetwatt: the database failed: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (["--reason", "odd"], {}, "invalid choice: 'odd'"),
        (["--since", "yesterday"], {}, "'yesterday' is no time; allowed: 2026-03-14T15:00:00Z, 2026-03-14"),
        (["--limit", "0"], {}, "'0' is not allowed; allowed: a whole number from 1"),
        (["show"], {}, "the following arguments are required: ID"),
        (["show", "-1"], {}, "'-1' is not allowed; allowed: a whole number from 1"),
        (["show", "1", "--raw", "--json"], {}, "not allowed with"),
        (["purge"], {}, "invalid choice: 'purge'"),
        (["replay"], {"CLOCK_AHEAD_MAX_S": "5min"}, "CLOCK_AHEAD_MAX_S is '5min'; allowed: seconds"),
        (["list"], {"DATABASE_URL": ""}, "DATABASE_URL is not set"),
    ],
)
def test_a_wrong_command_line_or_setting_is_exit_code_2(
    run: Run, arguments: list[str], settings: dict[str, str], sentence: str
) -> None:
    code, out, err = run(*arguments, **settings)
    assert (code, out) == (2, "")
    assert sentence in err


@pytest.mark.parametrize(
    "text", ["2026-03-14T15:00:00Z", "2026-03-14T16:00:00+01:00", "2026-03-14T15:00", "2026-03-14 15:00"]
)
def test_a_time_without_an_offset_is_utc(text: str) -> None:
    assert instant(text) == datetime(2026, 3, 14, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("2m", 120), ("3h", 10_800), ("1d", 86_400), ("1w", 604_800)]
)
def test_a_time_may_be_so_long_ago(text: str, seconds: int) -> None:
    assert abs((datetime.now(UTC) - instant(text)).total_seconds() - seconds) < 60


@pytest.mark.parametrize("text", ["", "now", "5", "-5m", "999999w", "0001-01-01T00:00+14:00", "2026-13-01", "²m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no time"):
        instant(text)


def test_who_reads_along_may_stop(database_url: str, keep: Any) -> None:
    keep([rejected(b"", device=f"m{n}") for n in range(1000)])
    command = f"{sys.executable} -m daemon rejections --limit 1000 | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=ROOT, env={**os.environ, "DATABASE_URL": database_url}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("count")
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_terminal_gets_lines_that_fit() -> None:
    group = Group("too_old", "m1", 1, THEN, THEN, 7, "x" * 300)
    groups = Groups([group], 1, 1, is_complete=False)
    _, line, *rest = list_text(groups, 80).splitlines()
    assert (len(line), line[-2:]) == (80, "x…")
    assert "only the newest were counted" in rest[1]
    assert list_text(groups, 10_000).splitlines()[1].endswith("x" * 300)
