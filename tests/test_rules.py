"""Rules of the house that would otherwise be forgotten. `make check` runs them; none needs a server."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from api.metrics import Metrics as ApiMetrics
from api.settings import ApiSettings
from daemon.accounts import Accounts
from daemon.metrics import Metrics
from daemon.readings import MEANINGS, METER_FORM, REASONS, VEHICLE_FORM
from daemon.settings import DaemonSettings
from sql.queries import FOLDER as QUERIES
from sql.settings import DatabaseSettings

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "sql": {"sql"},
    "daemon": {"sql", "daemon"},
    "api": {"sql", "daemon", "api"},
    "dev": {"sql", "daemon", "api", "dev"},
    "tests": {"sql", "daemon", "api", "dev", "tests"},
}
ROOMS = set(MAY_IMPORT)


def python_files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (name.partition(".")[0] for name in names if name.partition(".")[0] in ROOMS)


def tracked_text_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name and not name.endswith((".lock", ".ndjson", ".png"))]
    return [ROOT / name for name in names if (ROOT / name).exists()]


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_imports_go_one_way(room: str) -> None:
    for path in python_files(room):
        wrong = set(imported_rooms(path)) - MAY_IMPORT[room]
        assert not wrong, f"{path.relative_to(ROOT)} imports from {', '.join(sorted(wrong))}"


def test_the_sidecar_takes_nothing_of_the_daemon_but_its_readings() -> None:
    for path in python_files("api"):
        taken = set(re.findall(r"from (daemon[\w.]*) import", path.read_text(encoding="utf-8")))
        assert taken <= {"daemon.readings"}, f"{path.relative_to(ROOT)} imports from {', '.join(sorted(taken))}"


def test_only_files_that_touch_the_world_import_the_world() -> None:
    for name in ("readings", "batch", "accounts", "backoff", "recent", "progress"):
        text = (ROOT / "daemon" / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(r"import (asyncpg|mqtt5|socket|os)\b|from sql\.pool", text), f"daemon/{name}.py is pure"


@pytest.mark.parametrize("settings_type", [DaemonSettings, ApiSettings])
def test_every_setting_is_in_the_docs_with_its_default(settings_type: type[DatabaseSettings]) -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for info in msgspec.structs.fields(settings_type):
        row = next((line for line in page.splitlines() if line.startswith(f"| `{info.name.upper()}` |")), None)
        assert row, f"docs/settings.md lacks {info.name.upper()}"
        if not info.required and info.default is not None:
            assert f"| `{info.default}` |" in row, f"docs/settings.md has another default for {info.name.upper()}"


def exported_metrics(registry: CollectorRegistry) -> set[str]:
    return {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in registry.collect()
        if family.name.startswith("fleetwatt_")
    }


def test_every_metric_is_in_the_docs_and_no_other() -> None:
    sidecar = ApiMetrics()
    sidecar.watch(lambda: {"idle": 0, "used": 0}, lambda: True)
    for page, registry in (
        ("operations.md", Metrics(Accounts(), lambda: 0.0).registry),
        ("http.md", sidecar.registry),
    ):
        described = set(re.findall(r"`(fleetwatt_\w+)`", (ROOT / "docs" / page).read_text(encoding="utf-8")))
        assert described == exported_metrics(registry)


def test_every_reason_and_field_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "readings.md").read_text(encoding="utf-8")
    for name in (*METER_FORM.ranges, *VEHICLE_FORM.ranges):
        assert f"| `{name}` |" in page, f"docs/readings.md lacks {name}"
    assert tuple(MEANINGS) == REASONS
    for name, meaning in MEANINGS.items():
        assert f"| `{name}` | {meaning} |" in page, f"docs/readings.md says something else of {name}"


@pytest.mark.parametrize("path", sorted(QUERIES.glob("*.sql")), ids=lambda path: path.stem)
def test_a_query_file_is_a_sentence_and_one_statement(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert re.match(r"-- [A-Z].*", lines[0])
    assert sum(line.rstrip().endswith(";") for line in lines if not line.startswith("--")) == 1
    assert lines[-1].endswith(";")


def test_every_query_is_used() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in python_files("sql"))
    for path in QUERIES.glob("*.sql"):
        assert f'query("{path.stem}"' in code, f"nobody runs {path.name}"


def test_no_query_has_a_twin_for_the_other_kind_of_device() -> None:
    """SQL cannot take a table's name as a parameter, so `Kind.query` fills it in."""

    def neutral(path: Path) -> str:
        return re.sub("meter|vehicle", "device", path.name)

    paths = list(QUERIES.glob("*.sql"))
    assert len({neutral(path) for path in paths}) == len(paths)


def test_every_suppression_has_its_reason() -> None:
    for path in (path for room in ROOMS for path in python_files(room)):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(r"#\s*(noqa|type: ignore)", line):
                assert re.search(r"#\s*(noqa: [A-Z0-9, ]+|type: ignore\[[\w-]+\]).* [-#] \w", line), f"{path}:{number}"


def test_the_makefile_explains_each_of_its_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    declared = next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:]
    helped = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert sorted(line.split()[1] for line in helped.splitlines()) == sorted(declared)


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_no_file_names_the_machine_it_was_written_on() -> None:
    home = re.compile(r"(^|[\s\"'`(=])/(home|root|work|Users)/\w")
    for path in tracked_text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert not home.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
