"""Who may do what; what a technician reads when the tokens are not right."""

import base64
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.__main__ import main
from api.app import build_app
from api.auth import Gate, Role, TokensError, new_token, parse
from api.routes import OPERATIONS
from api.settings import ApiSettings
from sql.settings import SettingsError, read
from tests.api.conftest import bearer, check_problem, client_of, settings

ROOT = Path(__file__).parents[2]
URL = "postgresql://fleet@db.example/fleet"
MakeTokens = Callable[[], tuple[str, dict[str, str]]]


def request(client: TestClient, method: str, path: str, headers: dict[str, str]) -> int:
    """A request that nothing but its role can refuse with 401 or 403."""
    for name in ("vehicleId", "id"):
        path = path.replace(f"{{{name}}}", "d-1")
    path = path.replace("{kind}", "meter").replace("{file}", "start.js")
    response = client.request(method, path, headers=headers)
    if response.status_code in (401, 403):
        check_problem(response, response.status_code)
    return response.status_code


def test_each_route_asks_for_its_role_and_no_other(database_url: str, tokens: MakeTokens) -> None:
    path, made = tokens()
    with client_of(build_app(settings(database_url, API_TOKENS_FILE=path))) as client:
        for operation in OPERATIONS:
            for prefix in ("", "/api"):
                target = prefix + operation.full_path
                no_token = request(client, operation.method, target, {})
                assert (no_token == 401) == (operation.role is not None), target
                for role in Role:
                    status = request(client, operation.method, target, bearer(made[role.name]))
                    assert (status == 403) == (operation.role is not None and role < operation.role), (target, role)
                    assert status != 401


def test_only_livez_readyz_and_health_are_open() -> None:
    assert {operation.path for operation in OPERATIONS if operation.role is None} == {"/livez", "/readyz", "/health"}


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer nonsense", "Basic nonsense", "Bearer \x80", "fw_x", "Digest x", "Bearer a b"],
)
def test_what_is_no_token_is_401_with_a_challenge(database_url: str, tokens: MakeTokens, header: str) -> None:
    path, _ = tokens()
    with client_of(build_app(settings(database_url, API_TOKENS_FILE=path))) as client:
        response = client.get("/v1/meters", headers=[(b"authorization", header.encode("latin-1"))])
        check_problem(response, 401)
        assert response.headers["www-authenticate"] == 'Bearer realm="fleetwatt"'


def test_a_browser_may_give_the_token_as_a_password_for_the_page_only(database_url: str, tokens: MakeTokens) -> None:
    path, made = tokens()
    header = {"Authorization": "Basic " + base64.b64encode(f"me:{made['read']}".encode()).decode()}
    with client_of(build_app(settings(database_url, API_TOKENS_FILE=path))) as client:
        for page in ("/docs", "/docs/start.js", "/openapi.json"):
            assert "Basic" in client.get(page).headers["www-authenticate"]
            assert client.get(page, headers=header).status_code == 200
        check_problem(client.get("/v1/meters", headers=header), 401)


def test_a_deleted_line_revokes_and_a_broken_file_changes_nothing(database_url: str, tokens: MakeTokens) -> None:
    path, made = tokens()
    file = Path(path)
    lines = file.read_text().splitlines()
    with client_of(build_app(settings(database_url, API_TOKENS_FILE=path))) as client:

        def statuses() -> list[int]:
            return [client.get("/v1/meters", headers=bearer(made[role.name])).status_code for role in Role]

        assert statuses() == [200, 200, 200]
        file.write_text("\n".join(line for line in lines if " write " not in line))
        assert statuses() == [200, 401, 200]
        file.write_text("nonsense")
        assert statuses() == [200, 401, 200]
        file.unlink()
        assert statuses() == [200, 401, 200]
        file.write_text("# nobody any more\n")
        assert statuses() == [401, 401, 401]


def test_the_file_holds_hashes_and_never_a_token() -> None:
    token, line = new_token(Role.admin, "ops")
    assert token not in line
    (found,) = parse(f"# comment\n\n  {line}  \n")
    assert (found.role, found.name) == (Role.admin, "ops")
    with pytest.raises(TokensError, match="line 2 is not of the form"):
        parse(f"{line}\n{token}")
    assert parse("# nobody\n") == []


def test_a_file_without_a_token_is_refused_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# nobody yet\n")
    with pytest.raises(SettingsError, match="it holds no token"):
        Gate(str(path))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "sidecar.example", "127.0.0.1.example"])
def test_without_tokens_another_address_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match="while API_TOKENS_FILE is not set; allowed without tokens: 127"):
        read(ApiSettings, {"DATABASE_URL": URL, "API_HOST": host})
    assert read(ApiSettings, {"DATABASE_URL": URL, "API_HOST": host, "API_TOKENS_FILE": "/x"}).api_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_without_tokens_loopback_is_allowed(host: str) -> None:
    assert read(ApiSettings, {"DATABASE_URL": URL, "API_HOST": host}).api_host == host


WRONG = {
    "API_HOST": "0.0.0.0",
    "API_PORT": "0",
    "API_TOKENS_FILE": "/no/such/file",
    "API_CORS_ORIGINS": "dash.example",
    "API_BODY_BYTES_MAX": "1",
    "ANALYTICS_CACHE_TTL_S": "-1",
    "LOW_EFFICIENCY": "85",
    "POWER_MAX_KW": "0",
    "REJECTIONS_PER_S_MAX": "-1",
    "RETENTION_DAYS": "-1",
    "CLOCK_AHEAD_MAX_S": "nan",
}


@pytest.mark.parametrize("variable", WRONG)
def test_a_wrong_setting_ends_with_exit_code_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    for other in WRONG:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv(variable, WRONG[variable])
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fleetwatt: {variable} is ")
    assert "allowed" in line


def test_the_command_prints_a_token_once_and_keeps_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# ours, without an end of line")
    command = [sys.executable, "-m", "api", "token", "--role", "write", "--name", "gateway"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "API_TOKENS_FILE": str(file)}, capture_output=True, text=True, check=True
    )
    (token,) = done.stdout.splitlines()
    assert token not in done.stderr
    assert token not in file.read_text()
    (found,) = parse(file.read_text())
    assert (found.role, found.name) == (Role.write, "gateway")


def test_without_a_file_the_command_prints_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("API_TOKENS_FILE", raising=False)
    assert main(["token", "--role", "read"]) == 0
    printed = capsys.readouterr()
    assert any(line.startswith("sha256:") for line in printed.err.splitlines())
    assert printed.out.startswith("fw_")
    monkeypatch.setenv("API_TOKENS_FILE", str(tmp_path / "new"))
    assert main(["token", "--role", "read"]) == 0
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    with pytest.raises(SystemExit):
        main(["token", "--role", "read", "--name", "a b"])
