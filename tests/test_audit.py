"""An audit that could not be made does not look like one that found nothing."""

import sys

import pytest

from dev import audit
from dev.audit import Package, Report, Vulnerability, verdict

SOUND = Package("sound", "1.0")
UNKNOWN = Package("unknown", skip_reason="Dependency not found on PyPI and could not be audited: unknown (1.0)")
BAD = Package("bad", "1.0", [Vulnerability("PYSEC-2026-1", ["1.1"])])


def test_packages_without_a_known_vulnerability_are_all_right() -> None:
    assert verdict("a.lock", Report([SOUND])) == (0, ["a.lock: 1 packages, no known vulnerability"])


def test_a_vulnerability_is_named_with_the_version_that_mends_it() -> None:
    code, lines = verdict("a.lock", Report([SOUND, BAD, UNKNOWN]))
    assert (code, lines[0]) == (1, "a.lock: bad 1.0 has PYSEC-2026-1; mended in 1.1")
    assert "NOT AUDITED: 1 of 3 packages" in lines[1]


@pytest.mark.parametrize("packages", [[UNKNOWN], [SOUND, UNKNOWN], []])
def test_what_was_not_looked_at_is_no_success(packages: list[Package]) -> None:
    code, lines = verdict("a.lock", Report(packages))
    assert code == 2
    assert "NOT AUDITED" in lines[0]


def test_a_pip_audit_that_fails_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "COMMAND", (sys.executable, "-c", "import sys; sys.exit('no network')"))
    assert audit.main() == 2
    assert capsys.readouterr().out.count("NOT AUDITED: pip-audit failed with exit code 1: no network") == 2
