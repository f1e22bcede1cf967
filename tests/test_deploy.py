"""What is shipped for production: systemd units, their environment file, the installers, and the containers."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest

from api.settings import ApiSettings
from daemon.notify import BEATS_PER_WATCHDOG, Notifier
from daemon.settings import DaemonSettings
from sql.settings import SettingsError, read

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
SECRETS = {"DATABASE_URL", "MQTT_URL", "API_TOKENS_FILE"}
EXPOSURE_MAX = 2.0

# On macOS, and on a Linux without systemd, there is nobody who could judge a unit.
needs_systemd_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")

# Stands in for Python in an installation: answers the version check, makes a "venv", and keeps what pip is told.
FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip") echo "$@" >> "$PIP_LOG"; [ -z "${PIP_FAILS:-}" ] ;;
esac
"""


def settings_with_their_defaults() -> dict[str, str]:
    """Each variable of daemon and api and its default as it would be written; nothing where there is none."""
    defaults = {}
    for field in (*msgspec.structs.fields(DaemonSettings), *msgspec.structs.fields(ApiSettings)):
        default = field.default if field.default is not msgspec.NODEFAULT else None
        defaults[field.name.upper()] = "" if default is None else str(default)
    return defaults


class Stage:
    """A folder that deploy/install fills as if it were the root of a machine."""

    def __init__(self, folder: Path) -> None:
        self.root, self.pip_log, self.python = folder / "root", folder / "pip.log", folder / "python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def install(self, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {"DESTDIR": str(self.root), "PYTHON": str(self.python), "PIP_LOG": str(self.pip_log)} | environment
        return subprocess.run(
            [DEPLOY / "install"], env=os.environ | given, capture_output=True, text=True, check=False, umask=0o077
        )

    def path(self, name: str) -> Path:
        return self.root / name


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_the_environment_file_names_every_setting_with_its_default() -> None:
    lines = (DEPLOY / "fleetwatt.env").read_text().splitlines()
    named = dict(line[1:].split("=", 1) for line in lines if re.match(r"#[A-Z_]+=", line))
    expected = {name: default for name, default in settings_with_their_defaults().items() if name not in SECRETS}
    assert named == expected


def test_the_environment_file_sets_nothing_by_itself() -> None:
    lines = (DEPLOY / "fleetwatt.env").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []


@needs_systemd_analyze
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_hardened(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    exposure = re.search(r"Overall exposure level for .*: ([0-9.]+)", answer.stdout)
    if not exposure:  # --offline came with systemd 250; an older one has nothing to say of a file
        pytest.skip(f"this systemd cannot judge a file: {answer.stderr}")
    assert float(exposure[1]) <= EXPOSURE_MAX


@needs_systemd_analyze
def test_systemd_understands_every_line_of_the_installed_units(stage: Stage) -> None:
    stage.install(PREFIX="/opt/elsewhere")
    for unit in UNITS:
        installed = stage.path("etc/systemd/system") / unit.name
        # Here is neither the program nor its user; everything else must be right.
        text = installed.read_text().replace("/opt/elsewhere/venv/bin/python", "/bin/true")
        installed.write_text(text.replace("User=fleetwatt\n", ""))
        command = ["systemd-analyze", "verify", "--man=no", str(installed)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        complaints = [line for line in answer.stderr.splitlines() if unit.name in line or "fleetwatt" in line]
        assert complaints == []


@pytest.mark.parametrize(
    ("unit", "secrets"),
    [
        ("daemon", ["database_url", "mqtt_url"]),
        ("daemon@", ["database_url", "mqtt_url-%i", "mqtt_share_group"]),
        ("migrate", ["database_url"]),
        ("api", ["database_url", "api_tokens"]),
    ],
)
def test_a_unit_reads_the_secrets_that_it_needs_as_credentials(unit: str, secrets: list[str]) -> None:
    text = (DEPLOY / f"fleetwatt-{unit}.service").read_text()
    names = [secret.removesuffix("-%i") for secret in secrets]
    assert re.findall("^LoadCredential=(.*)$", text, flags=re.MULTILINE) == [
        f"{name}:/etc/fleetwatt/{secret}" for name, secret in zip(names, secrets, strict=True)
    ]
    assert re.findall(r"([A-Z_]+)_FILE=%d/([a-z_]+)", text) == [(name.upper(), name) for name in names]


@pytest.mark.parametrize("unit", ["daemon", "daemon@", "api"])
def test_a_process_is_not_started_again_with_wrong_settings(unit: str) -> None:
    assert "RestartPreventExitStatus=2\n" in (DEPLOY / f"fleetwatt-{unit}.service").read_text()


def daemon_unit(unit: str = "fleetwatt-daemon.service") -> dict[str, list[str]]:
    """The lines of the daemon's unit, by name."""
    lines: dict[str, list[str]] = {}
    for name, value in re.findall("^([A-Za-z]+)=(.*)$", (DEPLOY / unit).read_text(), re.MULTILINE):
        lines.setdefault(name, []).append(value)
    return lines


def test_systemd_waits_for_the_daemons_word_and_for_its_pings() -> None:
    unit = daemon_unit()
    assert (unit["Type"], unit["NotifyAccess"], unit["Restart"]) == (["notify"], ["main"], ["on-failure"])
    watchdog_s = int(unit["WatchdogSec"][0])
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": str(watchdog_s * 1_000_000)})
    assert BEATS_PER_WATCHDOG * notifier.interval_s < watchdog_s


def test_the_spool_is_where_systemd_lets_the_daemon_and_nobody_else_write() -> None:
    unit = daemon_unit()
    assert (unit["StateDirectory"], unit["StateDirectoryMode"], unit["UMask"]) == (["fleetwatt"], ["0700"], ["0077"])
    assert "SPOOL_DIR=%S/fleetwatt" in unit["Environment"]


def test_one_of_several_daemons_differs_from_the_only_one_in_what_must_be_its_own() -> None:
    only, one = daemon_unit(), daemon_unit("fleetwatt-daemon@.service")
    different = {name for name in only | one if only.get(name) != one.get(name)}
    assert different == {
        *("Description", "Conflicts", "Environment", "EnvironmentFile", "LoadCredential", "StateDirectory"),
    }
    assert one["Conflicts"] == ["fleetwatt-daemon.service"]
    assert one["EnvironmentFile"] == ["/etc/fleetwatt/fleetwatt.env", "-/etc/fleetwatt/fleetwatt-%i.env"]
    assert one["StateDirectory"] == ["fleetwatt-%i"]


def test_the_settings_of_two_of_several_daemons_do_not_meet() -> None:
    lines = " ".join(daemon_unit("fleetwatt-daemon@.service")["Environment"])
    own = {name: value for name, value in (word.split("=", 1) for word in lines.split()) if "%i" in value}
    assert set(own) == {"MQTT_CLIENT_ID", "METRICS_PORT", "SPOOL_DIR"}
    given = {"DATABASE_URL": "postgresql://h/d", "MQTT_URL": "mqtt://h", "MQTT_SHARE_GROUP": "g"}
    for n in ("1", "9"):
        settings = read(DaemonSettings, {**given, **{name: value.replace("%i", n) for name, value in own.items()}})
        assert (settings.mqtt_client_id, settings.metrics_port) == (f"fleetwatt-{n}", 9110 + int(n))


def test_an_installation_has_program_units_and_settings(stage: Stage) -> None:
    answer = stage.install(PREFIX="/opt/elsewhere")
    assert answer.returncode == 0, answer.stderr
    for folder in ("api", "daemon", "sql"):
        shipped = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.*") if "__pycache__" not in path.parts}
        prefix = stage.path("opt/elsewhere")
        assert {path.relative_to(prefix) for path in (prefix / folder).rglob("*.*")} == shipped
    assert (stage.path("etc/fleetwatt/fleetwatt.env")).read_text() == (DEPLOY / "fleetwatt.env").read_text()
    for unit in UNITS:
        installed = (stage.path("etc/systemd/system") / unit.name).read_text()
        assert installed == unit.read_text().replace("/opt/fleetwatt", "/opt/elsewhere")
    assert sorted(path.name for path in stage.path("opt/elsewhere").iterdir()) == [
        "api",
        "daemon",
        "fleetwatt",
        "sql",
        "venv",
    ]


def test_an_installation_can_be_read_by_the_service_even_if_the_shell_was_private(stage: Stage) -> None:
    stage.install()
    for path in (stage.path("opt/fleetwatt/daemon/__main__.py"), stage.path("etc/fleetwatt/fleetwatt.env")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_packages_are_installed_from_the_lock_file_with_their_hashes(stage: Stage) -> None:
    stage.install()
    assert re.search(rf"-m pip install .*--require-hashes -r {ROOT}/requirements.lock", stage.pip_log.read_text())


def test_an_upgrade_keeps_edited_settings_and_removes_what_is_gone(stage: Stage) -> None:
    stage.install()
    settings, leftover = stage.path("etc/fleetwatt/fleetwatt.env"), stage.path("opt/fleetwatt/daemon/gone.py")
    settings.write_text("LOG_LEVEL=debug\n")
    leftover.touch()
    answer = stage.install()
    assert settings.read_text() == "LOG_LEVEL=debug\n"
    assert settings.with_name("fleetwatt.env.new").read_text() == (DEPLOY / "fleetwatt.env").read_text()
    assert "fleetwatt.env.new" in answer.stdout
    assert not leftover.exists()


def test_an_upgrade_keeps_the_spool(stage: Stage) -> None:
    spool = stage.path("var/lib/fleetwatt/spool.sqlite3")
    spool.parent.mkdir(parents=True)
    spool.write_text("readings")
    for _ in range(2):
        assert stage.install().returncode == 0
    assert spool.read_text() == "readings"


def test_an_upgrade_that_fails_leaves_the_old_version_as_it_was(stage: Stage) -> None:
    stage.install()
    old = stage.path("opt/fleetwatt/daemon/old.py")
    old.touch()
    assert stage.install(PIP_FAILS="yes").returncode != 0
    assert old.exists()
    assert stage.path("opt/fleetwatt/venv/bin/python").exists()


@pytest.mark.parametrize("prefix", ["opt/fleetwatt", "/", "/opt/fleet watt", "/opt/../etc", "/opt/fleetwatt/"])
def test_a_prefix_that_cannot_be_meant_is_refused(stage: Stage, prefix: str) -> None:
    answer = stage.install(PREFIX=prefix)
    assert answer.returncode == 1
    assert "PREFIX is" in answer.stderr
    assert not stage.root.exists()


@pytest.mark.parametrize(
    ("program", "found"),
    [("mosquitto", "mosquitto"), ("pgbouncer", "pgbouncer"), ("chromium", "chromium"), ("chromium", "google-chrome")],
)
def test_nothing_is_installed_nor_said_where_a_program_is_there(program: str, found: str, tmp_path: Path) -> None:
    (tmp_path / found).touch(mode=0o755)
    given = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    answer = subprocess.run([DEPLOY / "install-package", program], env=given, capture_output=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, b"", b"")


def test_an_unknown_program_is_not_installed() -> None:
    answer = subprocess.run([DEPLOY / "install-package", "nginx"], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "allowed: mosquitto, pgbouncer or chromium" in answer.stderr


@pytest.mark.parametrize(
    "script",
    [
        *(DEPLOY / name for name in ("fleetwatt", "install", "install-package")),
        ROOT / "mosquitto" / "certificates",
    ],
)
def test_a_script_is_executable_and_parses(script: Path) -> None:
    assert script.read_text().startswith("#!/bin/sh\n")
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", script], check=True)


class Commands:
    """An installation on whose machine systemd's programs only say what they are told."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        stage.install()
        self.script, self._folder = stage.path("opt/fleetwatt/fleetwatt"), folder
        self.unit = stage.path("etc/systemd/system/fleetwatt-daemon.service")
        folder.mkdir()
        self._stand_in("id", "echo 0")
        self._stand_in("systemctl", f'cat "{self.unit.parent}/$(echo "$2" | sed "s/@.*[.]/@./")"')
        self._stand_in("systemd-run", 'printf "%s\\n" "$@"; exit 7')

    def _stand_in(self, name: str, body: str) -> None:
        path = self._folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{self._folder}:{os.environ['PATH']}"}
        return subprocess.run([self.script, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def commands(stage: Stage, tmp_path: Path) -> Commands:
    return Commands(stage, tmp_path / "bin")


def test_a_command_runs_as_the_service_would(commands: Commands) -> None:
    answer = commands.run("check", "--json")
    assert answer.returncode == 7  # the command's own
    lines = answer.stdout.splitlines()
    program = commands.script.parent
    assert lines[-5:] == [str(program / "venv/bin/python"), "-m", "daemon", "check", "--json"]
    given = [line.removeprefix("--property=") for line in lines if line.startswith("--property=")]
    (name,) = (line.removeprefix("--unit=") for line in lines if line.startswith("--unit="))
    text = commands.unit.read_text().replace("%d", f"/run/credentials/{name}").replace("%S", "/var/lib")
    service = text[text.index("[Service]") : text.index("[Install]")]
    expected = [line for line in service.splitlines() if re.match("[A-Z]", line)]
    of_a_service = r"(Type|NotifyAccess|ExecStart|Restart\w*|Timeout\w*|WatchdogSec)="
    assert given == [line for line in expected if not re.match(of_a_service, line)]


def test_a_command_sees_what_was_edited(commands: Commands) -> None:
    with commands.unit.open("a") as unit:
        unit.write(
            "[Service]\n# mine\nEnvironment = LOG_LEVEL=debug \\\n  LOG_FORMAT=json\nWatchdogSec=5\n[Unit]\nAfter=x\n"
        )
    lines = commands.run("check").stdout.splitlines()
    last = [line for line in lines if line.startswith("--property=")][-1]
    assert last.split() == ["--property=Environment=LOG_LEVEL=debug", "LOG_FORMAT=json"]


def test_a_command_is_refused_where_it_would_run_with_other_settings(commands: Commands) -> None:
    with commands.unit.open("a") as unit:
        unit.write("[Service]\nEnvironment=SPOOL_DIR=%t/spool\n")
    answer = commands.run("check")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "SPOOL_DIR=%t/spool" in answer.stderr


def test_a_command_runs_as_one_of_several_daemons_would(commands: Commands) -> None:
    answer = commands.run("@2", "check")
    lines = answer.stdout.splitlines()
    assert lines[-3:] == ["-m", "daemon", "check"]
    assert "--property=LoadCredential=mqtt_url:/etc/fleetwatt/mqtt_url-2" in lines
    assert "--property=Environment=SPOOL_DIR=/var/lib/fleetwatt-2" in lines
    assert "--property=Environment=MQTT_CLIENT_ID=fleetwatt-2 METRICS_PORT=9112" in lines
    assert "%i" not in answer.stdout


@pytest.mark.parametrize("name", ["@", "@2;id", "@../2"])
def test_a_command_is_refused_for_what_can_be_no_daemon(commands: Commands, name: str) -> None:
    answer = commands.run(name, "check")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "names no daemon" in answer.stderr


def test_no_command_starts_no_second_daemon(commands: Commands) -> None:
    answer = commands.run()
    assert (answer.returncode, answer.stdout) == (1, "")


def test_the_spools_volume_is_mounted_where_the_image_has_a_folder_of_the_daemons_own() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    (folder,) = re.findall("SPOOL_DIR: (.+)", compose)
    for volume in ("spool", "spool-2", "spool-3"):
        assert compose.count(f"      - {volume}:{folder}\n") == 1
        assert re.search(rf"^  {volume}:$", compose[compose.index("\nvolumes:") :], re.MULTILINE)
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"install --directory --mode=700 --owner=fleetwatt --group=fleetwatt {folder}\n" in dockerfile
    assert dockerfile.index(folder) < dockerfile.index("\nUSER ")


def test_the_containers_set_only_known_settings() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    ours = compose[compose.index("\n  migrate:") : compose.index("\n  grafana:")]
    given = re.findall(r"^      ([A-Z_]+):", ours, flags=re.MULTILINE)
    known = settings_with_their_defaults()
    assert given
    assert {name for name in given if name not in known and name.removesuffix("_FILE") not in known} == set()


def test_the_containers_secrets_are_made_by_the_documented_commands() -> None:
    compose, manual = (ROOT / "docker-compose.yml").read_text(), (ROOT / "docs" / "docker.md").read_text()
    files = set(re.findall(r"\./secrets/([a-z_0-9]+)\b", compose)) - {"certs"}
    of_several = {"mqtt_url_2", "mqtt_url_3"}
    of_grafana = {"grafana_password", "grafana_admin_password"}
    own = {"passwords", "postgres_password", "database_url", "mqtt_url", "api_tokens"}
    assert files == own | of_several | of_grafana
    for name in own:
        assert f"> {name}" in manual
    for name in of_grafana:
        assert f"> {name}" in (ROOT / "docs" / "grafana.md").read_text()
    assert "secrets/mqtt_url_$n" in (ROOT / "docs" / "scaling.md").read_text()
    assert "mosquitto/certificates secrets/certs mosquitto" in manual


def test_the_container_of_grafana_is_confined_like_the_others_and_reads_what_is_shipped() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    service = compose[compose.index("\n  grafana:") : compose.index("\nsecrets:")]
    for line in (
        "<<: *confined",
        "profiles: [grafana]",
        'user: "472:472"',
        'ports: ["127.0.0.1:3000:3000"]',
        "secrets: [grafana_password, grafana_admin_password]",
        "- ./deploy/grafana/provisioning:/etc/grafana/provisioning:ro",
        "- ./deploy/grafana/dashboards:/etc/grafana/dashboards:ro",
    ):
        assert f"    {line}\n" in service
    assert re.search(r"image: grafana/grafana:\d+\.\d+\.\d+\n", service)
    assert {"mem_limit", "pids_limit", "healthcheck"} <= set(re.findall(r"^    (\w+):", service, re.MULTILINE))
    confined = compose[compose.index("x-confined:") : compose.index("x-fleetwatt:")]
    for line in ("read_only: true", "cap_drop: [ALL]", 'security_opt: ["no-new-privileges:true"]'):
        assert f"  {line}\n" in confined


def test_the_containers_of_several_daemons_do_not_start_without_a_group() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    defaults = re.findall(r"MQTT_SHARE_GROUP: \$\{FLEETWATT_SHARE_GROUP:-(.*)\}", compose)
    assert defaults[0] == "", "the first is alone where there is none"
    for default in defaults[1:]:
        given = {"DATABASE_URL": "postgresql://h/d", "MQTT_URL": "mqtt://h", "MQTT_CLIENT_ID": "x"}
        with pytest.raises(SettingsError, match="FLEETWATT_SHARE_GROUP"):
            read(DaemonSettings, {**given, "MQTT_SHARE_GROUP": default})
    assert len(defaults) == 3


def test_the_containers_of_a_cluster_make_every_worker_known_and_distribute_the_tables() -> None:
    cluster = (ROOT / "docker-compose.citus.yml").read_text()
    workers = set(re.findall(r"^  (worker-\d+):", cluster[: cluster.index("\nvolumes:")], re.MULTILINE))
    assert len(workers) > 1
    assert set(re.findall(r"citus_add_node\('([\w-]+)'", cluster)) == workers
    assert set(re.findall(r"^      - ([\w-]+):/var/lib/postgresql/data$", cluster, re.MULTILINE)) == {
        "coordinator",
        *workers,
    }
    assert re.findall(r"image: citusdata/citus:(.+)", cluster) == ["13.2.0"]
    assert "command: [daemon, migrate, --distribute]" in cluster
    files = set(re.findall(r"\./secrets/([a-z_0-9]+)\b", cluster))
    manual = (ROOT / "docs" / "docker.md").read_text() + (ROOT / "docs" / "scaling.md").read_text()
    assert all(f"> {name}" in manual for name in files)


def test_the_nodes_of_a_broker_cluster_know_each_other_and_who_may_do_what() -> None:
    cluster = (ROOT / "docker-compose.emqx.yml").read_text()
    names = set(re.findall(r"EMQX_NODE__NAME: emqx@(\S+)", cluster))
    assert len(names) > 2
    assert set(re.findall(r"aliases: \[(\S+)\]", cluster)) == names
    assert set(re.findall(r'"emqx@([^"]+)"', (DEPLOY / "emqx" / "emqx.conf").read_text())) == names
    rules = (DEPLOY / "emqx" / "acl.conf").read_text()
    for kind in ("meters", "vehicles"):
        assert f'"{kind}/${{username}}/reading"' in rules
        assert f'"$share/+/{kind}/#"' in rules
    assert rules.rstrip().endswith("{deny, all}.")


@pytest.mark.parametrize(
    "override",
    [[], ["docker-compose.citus.yml"], ["docker-compose.emqx.yml"]],
    ids=["one server", "database cluster", "broker cluster"],
)
@pytest.mark.parametrize("profile", ["", "many", "grafana"])
def test_docker_understands_the_compose_files(profile: str, override: list[str]) -> None:
    # No package that `make` installs brings Docker. The file's meaning is tested above without it.
    plugin = ["docker", "compose", "version"]
    if not shutil.which("docker") or subprocess.run(plugin, capture_output=True, check=False).returncode:
        pytest.skip("docker with its compose plugin is not installed")
    command = [
        "docker",
        "compose",
        *(word for name in ["docker-compose.yml", *override] for word in ("--file", str(ROOT / name))),
        "--profile",
        profile,
        "config",
        "--quiet",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_the_image_holds_the_locked_packages_and_no_secrets() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes" in dockerfile
    assert re.search(r"^USER (?!root)", dockerfile, flags=re.MULTILINE)
    allowed = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert allowed[0] == "*"
    assert {line for line in allowed if line.startswith("!")} == {"!requirements.lock", "!api", "!daemon", "!sql"}
