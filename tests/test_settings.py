"""Settings: what is wrong ends the process with exit code 2 and one line that a technician understands."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from daemon.__main__ import main
from daemon.settings import DaemonSettings
from sql.settings import DatabaseSettings, SettingsError, allowed_text, read, without_password

ROOT = Path(__file__).parent.parent
REQUIRED = {
    "DATABASE_URL": "postgresql://fleet:db-secret@db.example/fleet",
    "MQTT_URL": "mqtt://fleet:mq-secret@mq.example",
}
FIELDS = msgspec.structs.fields(DaemonSettings)
VARIABLES = [field.name.upper() for field in FIELDS]
SECRETS = ("db-secret", "mq-secret")

Run = Callable[[Mapping[str, str]], str]


@pytest.fixture
def line_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the daemon with an environment and return the one line with which it ends."""

    def run(changes: Mapping[str, str | None], command: list[str] | None = None) -> str:
        for variable in VARIABLES:
            monkeypatch.delenv(variable, raising=False)
            monkeypatch.delenv(f"{variable}_FILE", raising=False)
        for variable, value in {**REQUIRED, **changes}.items():
            if value is not None:
                monkeypatch.setenv(variable, value)
        assert main(command or []) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert not any(secret in line for secret in SECRETS), "a password was shown"
        return line.removeprefix("fleetwatt: ")

    return run


BROKER_URL = "mqtt://USER:PASSWORD@HOST:PORT, or mqtts:// for TLS"
DATABASE_URL = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
NAME = "1 to 64 of A-Z a-z 0-9 . _ : -"
PORT = "a whole number from 1 to 65535"
DAYS = "a whole number from 0 (keep for ever) to 36500"

WRONG: dict[str, tuple[str, list[str]]] = {
    "DATABASE_URL": (
        DATABASE_URL,
        [
            "db.example",
            "mysql://db.example/fleet",
            "postgresql://db.example:0/fleet",
            "postgresql://db.example:65536/fleet",
            "postgresql://[::1/fleet",
            "postgresql://db..example/fleet",
            "host=db.example dbname=fleet",
        ],
    ),
    "MQTT_URL": (
        BROKER_URL,
        [
            "mq.example",
            "mq.example:1883",
            "tcp://mq.example",
            "https://mq.example",
            "mqtt:mq.example",
            "mqtt:/mq.example",
            "mqtt://",
            "mqtt://:1883",
            "mqtt://mq.example:0",
            "mqtt://mq.example:65536",
            "mqtt://[::1",
            "mqtt://mq..example",
            f"mqtt://{'m' * 64}.example",
            "mqtt://mq.example/topic",
            "mqtt://mq.example?keepalive=5",
            "mqtt://mq.example#fragment",
        ],
    ),
    "MQTT_CA_FILE": ("only together with an mqtts:// MQTT_URL", ["/etc/ca.crt"]),
    "MQTT_CERT_FILE": ("only together with an mqtts:// MQTT_URL", ["/etc/client.crt"]),
    "MQTT_KEY_FILE": ("only together with an mqtts:// MQTT_URL", ["/etc/client.key"]),
    "MQTT_CLIENT_ID": (NAME, ["fleet watt", "a/b", "fleetwatt\n", "ä", "x" * 65]),
    "MQTT_SHARE_GROUP": (NAME, ["a/b", "+", "#", " ", "group\n", "x" * 65]),
    "MQTT_RECEIVE_MAXIMUM": (PORT, ["0", "-1", "65536", "1.5", "many", "0x10", "1_000", "null", "true", "9" * 400]),
    "BATCH_ROWS_MAX": ("a whole number from 1 to 100000", ["0", "100001", "1e9", "all", " 5"]),
    "FLUSH_INTERVAL_S": ("seconds, from 0.001 to 60", ["0", "-1", "60.1", "nan", "inf", "50ms", "0,05", "1e-9"]),
    "SPOOL_DIR": (
        "a folder that exists, on a local disk, writable, and not used by another daemon",
        ["/nowhere/to/be/found", "/dev/null", "relative/and/missing"],
    ),
    "SPOOL_BYTES_MAX": (
        "a whole number of bytes from 1048576 (1 MiB) to 1099511627776 (1 TiB)",
        ["0", "1048575", "1099511627777", "1GiB", "1.5e9x"],
    ),
    "SPOOL_AFTER_S": ("seconds, from 0.1 to 3600", ["0", "0.09", "3601", "nan", "5s"]),
    "REJECTIONS_PER_S_MAX": ("rejections a second, from 0 (keep all) to 100000", ["-1", "100001", "inf", "20/s"]),
    "REJECTION_RETENTION_DAYS": (DAYS, ["-1", "36501", "90d", "0.5"]),
    "RETENTION_DAYS": (DAYS, ["-1", "36501", "400d", "for ever", "0.5"]),
    "ROLLUP_RETENTION_DAYS": (DAYS, ["-1", "36501", "10y", "0.5"]),
    "POWER_MAX_KW": ("kilowatts, above 0 and up to 100000", ["0", "-1", "100001", "22kW", "nan", "inf"]),
    "CLOCK_AHEAD_MAX_S": ("seconds, from 0 to 86400", ["-0.1", "86401", "nan", "-inf", "5min"]),
    "METRICS_HOST": (
        "an address of this machine and a free port",
        ["192.0.2.1", "256.1.1.1", "nowhere.invalid", "127.0.0.1:9108", "a..b", "x" * 70],
    ),
    "METRICS_PORT": (PORT, ["0", "-1", "65536", "http", "91o8", "9108 "]),
    "LOG_FORMAT": ("console or json", ["xml", "JSON", "console,json"]),
    "LOG_LEVEL": ("debug, info, warning or error", ["verbose", "critical", "10"]),
}


def test_the_table_of_wrong_values_has_every_variable() -> None:
    assert sorted(WRONG) == sorted(VARIABLES)


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [(variable, value, allowed) for variable, (allowed, values) in WRONG.items() for value in values],
)
def test_a_wrong_value_ends_in_a_line_with_variable_value_and_what_is_allowed(
    line_of: Callable[..., str], variable: str, value: str, allowed: str
) -> None:
    line = line_of({variable: value})
    assert line.startswith(variable)
    assert repr(value) in line
    assert f"; allowed: {allowed}" in line


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("MQTT_URL", "http://fleet:mq-secret@mq.example", "http://fleet:***@mq.example"),
        ("MQTT_URL", "mqtt://fleet:mq-secret@mq.example:0", "mqtt://fleet:***@mq.example:0"),
        ("MQTT_URL", "mqtt://fleet:mq-secret", "mqtt://fleet:***"),
        ("MQTT_URL", "mqtt://fleet:1/mq-secret@mq.example", "mqtt://fleet:***@mq.example"),
        ("MQTT_URL", "mqtt://fleet:1//mq-secret@mq.example", "mqtt://fleet:***@mq.example"),
        ("MQTT_URL", "mqtt://fleet:1?mq-secret@mq.example", "mqtt://fleet:***@mq.example"),
        ("MQTT_URL", "mqtt://fleet:1#mq-secret@mq.example", "mqtt://fleet:***@mq.example"),
        ("MQTT_URL", "mqtt://fleet:mq-secret@x:y@mq.example:0", "mqtt://fleet:***@mq.example:0"),
        ("MQTT_URL", "mqtt://:mq-secret@mq.example:0", "mqtt://:***@mq.example:0"),
        ("MQTT_URL", "fleet:mq-secret@mq.example", "fleet:***@mq.example"),
        ("DATABASE_URL", "postgresql://fleet:db-secret/fleet", "postgresql://fleet:***"),
        ("DATABASE_URL", "mysql://fleet:db-secret@db.example", "mysql://fleet:***@db.example"),
        ("DATABASE_URL", "postgresql://fleet:db-secret@db.example:x/f", "postgresql://fleet:***@db.example:x/f"),
        ("DATABASE_URL", "postgresql://db:0/f?password=db-secret&a=b", "postgresql://db:0/f?password=***&a=b"),
        ("DATABASE_URL", "host=db password=db-secret user=f", "host=db password=*** user=f"),
        ("DATABASE_URL", "host=db password='my db-secret' user=f", "host=db password=*** user=f"),
    ],
)
def test_a_password_is_never_shown(line_of: Callable[..., str], variable: str, value: str, shown: str) -> None:
    assert repr(shown) in line_of({variable: value})


@pytest.mark.parametrize("text", ["mqtt://mq.example", "mqtt://[::1]:1883", "mqtt://[::1", "a:b c", "10:30", "", "::1"])
def test_what_has_no_password_is_shown_as_it_is(text: str) -> None:
    assert without_password(text) == text


@pytest.mark.parametrize("variable", sorted(REQUIRED))
@pytest.mark.parametrize("value", [None, ""])
def test_what_is_required_and_missing_is_named(line_of: Callable[..., str], variable: str, value: str | None) -> None:
    allowed = allowed_text(DaemonSettings, variable.lower())
    assert line_of({variable: value}) == f"{variable} is not set; give it as {allowed}, or {variable}_FILE"


def test_every_variable_says_what_is_allowed_in_one_line() -> None:
    for field in FIELDS:
        assert allowed_text(DaemonSettings, field.name).isprintable()


# NAME_FILE


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_and_its_file_form_exclude_each_other(line_of: Callable[..., str], variable: str) -> None:
    line = line_of({variable: "any-secret", f"{variable}_FILE": "/run/secrets/any"})
    assert line == f"{variable} and {variable}_FILE are both set; only one of them is allowed"


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_file_form_that_cannot_be_read_is_named(line_of: Callable[..., str], tmp_path: Path, variable: str) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, binary):
        line = line_of({variable: None, f"{variable}_FILE": str(path)})
        assert line.startswith(f"{variable}_FILE is {str(path)!r}, which cannot be read (")
        assert line.endswith("; allowed: the path of a readable text file")


def test_a_value_is_read_from_its_file_without_the_line_s_end(tmp_path: Path) -> None:
    for name, text in {"url": "mqtt://fleet:p%40ss@mq.example\n", "rows": " 500\r\n"}.items():
        (tmp_path / name).write_text(text)
    files = {"MQTT_URL_FILE": str(tmp_path / "url"), "BATCH_ROWS_MAX_FILE": str(tmp_path / "rows")}
    settings = read(DaemonSettings, {"DATABASE_URL": "postgres://db/fleet", **files})
    assert (settings.mqtt_url, settings.batch_rows_max) == ("mqtt://fleet:p%40ss@mq.example", 500)


def test_a_wrong_value_from_a_file_is_shown_with_its_variable(line_of: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text("plenty\nand more\n")
    assert line_of({"BATCH_ROWS_MAX_FILE": str(file)}).startswith(r"BATCH_ROWS_MAX is 'plenty\nand more'; allowed: ")


def test_an_empty_file_counts_as_not_set(line_of: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("\n")
    assert line_of({"MQTT_URL": None, "MQTT_URL_FILE": str(file)}).startswith("MQTT_URL is not set; ")


# What belongs together.


@pytest.mark.parametrize(("given", "missing"), [("CERT", "KEY"), ("KEY", "CERT")])
def test_a_certificate_and_its_key_come_together(line_of: Callable[..., str], given: str, missing: str) -> None:
    line = line_of({"MQTT_URL": "mqtts://mq.example", f"MQTT_{given}_FILE": "/etc/pem"})
    assert line == f"MQTT_{given}_FILE is set and MQTT_{missing}_FILE is not; allowed: both or neither"


@pytest.mark.parametrize("url", ["mqtts://mq.example", "MQTTS://mq.example"])
def test_a_file_that_holds_no_certificate_is_named(line_of: Callable[..., str], tmp_path: Path, url: str) -> None:
    no_pem = tmp_path / "no.pem"
    no_pem.write_text("not a certificate\n")
    for path in (str(no_pem), str(tmp_path / "missing")):
        line = line_of({"MQTT_URL": url, "MQTT_CA_FILE": path})
        assert line.startswith(f"MQTT_CA_FILE is {path!r}, which cannot be used (")
        line = line_of({"MQTT_URL": url, "MQTT_CERT_FILE": path, "MQTT_KEY_FILE": path})
        assert line.startswith(f"MQTT_CERT_FILE and MQTT_KEY_FILE are {path!r} and {path!r}, which cannot be used (")


def test_the_scheme_alone_decides_about_tls_however_it_is_written() -> None:
    for url in ("mqtts://mq.example", "MQTTS://mq.example", " mqtts://mq.example"):
        assert read(DaemonSettings, {**REQUIRED, "MQTT_URL": url}).uses_tls
    assert not read(DaemonSettings, {**REQUIRED, "MQTT_URL": "MQTT://mqtts:8883"}).uses_tls


def test_daemons_that_share_the_work_have_ids_of_their_own(line_of: Callable[..., str]) -> None:
    line = line_of({"MQTT_SHARE_GROUP": "store"})
    assert line.startswith("MQTT_CLIENT_ID is 'fleetwatt' while MQTT_SHARE_GROUP is set; allowed: an id of its own")
    shared = {**REQUIRED, "MQTT_SHARE_GROUP": "store", "MQTT_CLIENT_ID": "fleetwatt-1"}
    assert read(DaemonSettings, shared).mqtt_share_group == "store"


def test_a_port_in_use_is_named(line_of: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = line_of({"METRICS_PORT": str(port)})
    assert line.startswith(
        f"METRICS_HOST and METRICS_PORT are '127.0.0.1' and {port}, where the daemon cannot listen ("
    )
    assert line.endswith("; allowed: an address of this machine and a free port")


# What is right.


def test_right_values_become_the_settings() -> None:
    environ = {
        "DATABASE_URL": "postgresql:///fleet?host=/run/postgresql",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "debug",
        "MQTT_URL": "mqtts://fleet:secret@[2001:db8::1]:8884/",
        "MQTT_CA_FILE": "/etc/ca.crt",
        "MQTT_CERT_FILE": "/etc/client.crt",
        "MQTT_KEY_FILE": "/etc/client.key",
        "MQTT_CLIENT_ID": "fleet:watt-1._",
        "MQTT_SHARE_GROUP": "store",
        "MQTT_RECEIVE_MAXIMUM": "65535",
        "BATCH_ROWS_MAX": "1",
        "FLUSH_INTERVAL_S": "0.001",
        "SPOOL_DIR": "/var/lib/fleetwatt",
        "SPOOL_BYTES_MAX": "1048576",
        "SPOOL_AFTER_S": "0.1",
        "REJECTIONS_PER_S_MAX": "0",
        "REJECTION_RETENTION_DAYS": "36500",
        "RETENTION_DAYS": "0",
        "ROLLUP_RETENTION_DAYS": "36500",
        "POWER_MAX_KW": "22.5",
        "CLOCK_AHEAD_MAX_S": "86400",
        "METRICS_HOST": "::",
        "METRICS_PORT": "65535",
    }
    assert sorted(environ) == sorted(VARIABLES)
    settings = read(DaemonSettings, {**environ, "SOMETHING": "else"})
    assert {name.upper(): value for name, value in msgspec.structs.asdict(settings).items()} == {
        **environ,
        "MQTT_RECEIVE_MAXIMUM": 65535,
        "BATCH_ROWS_MAX": 1,
        "FLUSH_INTERVAL_S": 0.001,
        "SPOOL_BYTES_MAX": 1048576,
        "SPOOL_AFTER_S": 0.1,
        "REJECTIONS_PER_S_MAX": 0,
        "REJECTION_RETENTION_DAYS": 36500,
        "RETENTION_DAYS": 0,
        "ROLLUP_RETENTION_DAYS": 36500,
        "POWER_MAX_KW": 22.5,
        "CLOCK_AHEAD_MAX_S": 86400,
        "METRICS_PORT": 65535,
    }


def test_what_is_not_set_or_empty_has_its_default() -> None:
    empty = dict.fromkeys(set(VARIABLES) - set(REQUIRED), "")
    files = {f"{variable}_FILE": "" for variable in VARIABLES}
    assert read(DaemonSettings, {**REQUIRED, **empty, **files}) == read(DaemonSettings, REQUIRED)
    assert read(DaemonSettings, REQUIRED) == DaemonSettings(
        database_url=REQUIRED["DATABASE_URL"], mqtt_url=REQUIRED["MQTT_URL"]
    )


def test_settings_cannot_be_changed() -> None:
    settings = read(DaemonSettings, REQUIRED)
    with pytest.raises(AttributeError):
        settings.metrics_port = 1  # type: ignore[misc] # that is the point


# The process.


def run_daemon(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daemon", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_process_ends_with_code_2_and_nothing_but_the_line() -> None:
    ended = run_daemon(**REQUIRED, METRICS_PORT="http")
    expected = f"fleetwatt: METRICS_PORT is 'http'; allowed: {PORT}\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", expected)


def test_migrating_needs_the_database_alone(database_url: str) -> None:
    ended = run_daemon("migrate", DATABASE_URL=database_url)
    assert ended.returncode == 0, ended.stderr
    assert "the schema is up to date" in ended.stderr
    with pytest.raises(SettingsError, match="MQTT_URL is not set"):
        read(DaemonSettings, {"DATABASE_URL": database_url})


def test_migrating_without_a_database_url_ends_with_code_2(line_of: Callable[..., str]) -> None:
    line = line_of({"DATABASE_URL": None}, ["migrate"])
    assert (
        line
        == f"DATABASE_URL is not set; give it as {allowed_text(DatabaseSettings, 'database_url')}, or DATABASE_URL_FILE"
    )
