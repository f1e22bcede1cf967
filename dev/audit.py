"""`python -m dev.audit`: known vulnerabilities of the locked packages, those of production first.

pip-audit says "No known vulnerabilities found" also where it could ask about nothing. Here only what was asked about
counts: exit code 0 means that every package was, and that none has a known vulnerability; 1 that one has; 2 that the
audit could not be made, or not of all.
"""

import subprocess
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

LOCKS = ("requirements.lock", "requirements-dev.lock")
COMMAND = (str(Path(sys.executable).with_name("pip-audit")), "--require-hashes", "--disable-pip", "--format=json")


class Vulnerability(Struct, frozen=True):
    """As pip-audit reports it."""

    id: str
    fix_versions: list[str] = []


class Package(Struct, frozen=True):
    """One that is pinned; `skip_reason` says why it was not audited."""

    name: str
    version: str = ""
    vulns: list[Vulnerability] = []
    skip_reason: str | None = None


class Report(Struct, frozen=True):
    """What pip-audit prints."""

    dependencies: list[Package]


def verdict(lock: str, report: Report) -> tuple[int, list[str]]:
    """The exit code and what to say."""
    lines = [
        f"{lock}: {package.name} {package.version} has {vulnerability.id}; "
        f"mended in {', '.join(vulnerability.fix_versions) or 'no version yet'}"
        for package in report.dependencies
        for vulnerability in package.vulns
    ]
    skipped = [package for package in report.dependencies if package.skip_reason]
    if skipped or not report.dependencies:
        reason = skipped[0].skip_reason if skipped else "it names no package"
        missed = f"{len(skipped)} of {len(report.dependencies)} packages were"
        lines.append(f"{lock}: NOT AUDITED: {missed} not looked at ({reason}); run it where it can ask")
    if any(package.vulns for package in report.dependencies):
        return 1, lines
    if skipped or not report.dependencies:
        return 2, lines
    return 0, [f"{lock}: {len(report.dependencies)} packages, no known vulnerability"]


def audit(lock: str) -> tuple[int, list[str]]:
    """Ask about the packages of a lock file."""
    done = subprocess.run([*COMMAND, "--requirement", lock], capture_output=True, text=True, check=False)
    try:
        report = msgspec.json.decode(done.stdout, type=Report)
    except msgspec.MsgspecError:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return 2, [f"{lock}: NOT AUDITED: pip-audit failed with exit code {done.returncode}: {said[-1]}"]
    return verdict(lock, report)


def main() -> int:
    """The command line; returns the exit code."""
    codes = set()
    for lock in LOCKS:
        code, lines = audit(lock)
        print("\n".join(lines))
        codes.add(code)
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
