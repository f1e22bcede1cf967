"""The command: its lines, its exit codes, and what it prints for machines."""

import json
import re
from pathlib import Path

import pytest

from daemon.doctor.findings import Finding, failure, guarded
from tests.doctor.conftest import StartHouse
from tests.doctor.house import PASSWORDS, ROOT, House


def test_a_running_house_in_order(open_house: StartHouse) -> None:
    house = open_house()
    house.start_daemon()
    done = house.run()
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "ok       settings              complete and valid"
    assert all(line.startswith("ok ") for line in lines[:-1]), done.stdout
    assert lines[-1] == f"{len(lines) - 1} ok, 0 warning, 0 failure, 0 skipped"
    assert "\x1b" not in done.stdout


def test_a_failure_has_its_remedy_below_it(house: House) -> None:
    done = house.run(DATABASE_URL="postgresql://fleetwatt:hidden-secret@127.0.0.1:1/fleetwatt")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("failure  database.connect"))
    assert lines[at + 1].strip().startswith("-> start the database: systemctl start postgresql")
    assert "hidden-secret" not in done.stdout + done.stderr
    assert PASSWORDS["fleetwatt"] not in done.stdout + done.stderr


async def test_every_line_is_in_the_docs_and_no_other(house: House) -> None:
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8").partition("## What each line means")[2]
    assert re.findall(r"^\| `([a-z_.0-9]+)` \|", page, re.MULTILINE) == list(await house.check())


def test_warnings_alone_are_no_failure(open_house: StartHouse) -> None:
    house = open_house()
    house.start_daemon()
    done = house.run("--json", SPOOL_DIR="")
    report = json.loads(done.stdout)
    assert (done.returncode, report["exit_code"], report["level"]) == (0, 0, "warning")
    assert {"name": "spool.folder", "level": "warning", "text": "off"}.items() <= next(
        finding.items() for finding in report["findings"] if finding["name"] == "spool.folder"
    )


def test_json_is_one_object_and_the_same_findings(house: House) -> None:
    done = house.run("--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["exit_code"], report["level"]) == (1, 1, "failure")
    assert all(list(finding) == ["name", "level", "text", "remedy"] for finding in report["findings"])
    assert len(report["findings"]) == len(house.run().stdout.splitlines()) - 1 - sum(
        finding["remedy"] is not None for finding in report["findings"]
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"BATCH_ROWS_MAX": "0"}, "BATCH_ROWS_MAX is '0'"),
        ({"MQTT_URL": "mqtt://fleetwatt:hidden-secret@"}, "MQTT_URL is"),
        ({"MQTT_CA_FILE": "/nonexistent"}, "MQTT_CA_FILE is '/nonexistent'"),
    ],
)
def test_wrong_settings_are_the_first_line_and_exit_code_2(house: House, changes: dict[str, str], text: str) -> None:
    done = house.run(**changes)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith(f"failure  settings              {text}")
    assert "hidden-secret" not in done.stdout
    report = json.loads(house.run("--json", **changes).stdout)
    assert (report["exit_code"], [finding["name"] for finding in report["findings"]]) == (2, ["settings"])


def test_an_account_comes_from_a_file_and_not_from_the_command_line(house: House, tmp_path: Path) -> None:
    account = tmp_path / "account"
    account.write_text("no colon")
    done = house.run("--probe-account", str(account))
    assert done.returncode == 2
    assert "does not hold NAME:PASSWORD" in done.stdout
    assert house.run("--probe-account", str(tmp_path / "none")).returncode == 2


def test_with_a_devices_account_a_message_goes_all_the_way(house: House, tmp_path: Path) -> None:
    account = tmp_path / "account"
    account.write_text(f"meter-1:{PASSWORDS['meter-1']}\n")
    house.start_daemon()
    done = house.run("--probe-account", str(account))
    assert done.returncode == 0, done.stdout
    assert "from publish to commit in" in done.stdout
    assert PASSWORDS["meter-1"] not in done.stdout


async def test_what_nobody_expected_is_a_finding_and_no_traceback() -> None:
    async def stumble() -> list[Finding]:
        raise ZeroDivisionError("by nothing")

    (found,) = await guarded("database.disk", stumble, 1)
    assert found == failure(
        "database.disk",
        "could not be examined: ZeroDivisionError: by nothing",
        "mend what the message says, and run the check again",
    )
