"""The daemon's settings; `sql.settings` says how they are read and what an error looks like."""

from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

from sql.settings import DatabaseSettings, SettingsError, allowed_text, check_url, without_password

Seconds = Annotated[float, Meta(ge=0.001, le=60, description="seconds, from 0.001 to 60")]
FilePath = Annotated[str, Meta(description="the path of a PEM file")]


class DaemonSettings(DatabaseSettings, frozen=True, kw_only=True):
    """Everything the daemon can be told. The defaults suit a fleet of up to a million devices on two cores."""

    mqtt_url: Annotated[str, Meta(description="mqtt://USER:PASSWORD@HOST:PORT, or mqtts:// for TLS")]
    mqtt_ca_file: FilePath | None = None
    mqtt_cert_file: FilePath | None = None
    mqtt_key_file: FilePath | None = None
    mqtt_client_id: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}\Z", description="1 to 64 of A-Z a-z 0-9 . _ : -")
    ] = "fleetwatt"
    mqtt_share_group: (
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}\Z", description="1 to 64 of A-Z a-z 0-9 . _ : -")] | None
    ) = None
    mqtt_receive_maximum: Annotated[int, Meta(ge=1, le=65535, description="a whole number from 1 to 65535")] = 30000
    batch_rows_max: Annotated[int, Meta(ge=1, le=100000, description="a whole number from 1 to 100000")] = 10000
    flush_interval_s: Seconds = 0.05
    spool_dir: Annotated[str, Meta(description="the path of a folder on a local disk, one for each daemon")] | None = (
        None
    )
    spool_bytes_max: Annotated[
        int,
        Meta(ge=2**20, le=2**40, description="a whole number of bytes from 1048576 (1 MiB) to 1099511627776 (1 TiB)"),
    ] = 2**30
    spool_after_s: Annotated[float, Meta(ge=0.1, le=3600, description="seconds, from 0.1 to 3600")] = 5
    rejections_per_s_max: Annotated[
        float, Meta(ge=0, le=100_000, description="rejections a second, from 0 (keep all) to 100000")
    ] = 20
    rejection_retention_days: Annotated[
        int, Meta(ge=0, le=36500, description="a whole number from 0 (keep for ever) to 36500")
    ] = 90
    retention_days: Annotated[
        int, Meta(ge=0, le=36500, description="a whole number from 0 (keep for ever) to 36500")
    ] = 400
    rollup_retention_days: Annotated[
        int, Meta(ge=0, le=36500, description="a whole number from 0 (keep for ever) to 36500")
    ] = 3660
    power_max_kw: Annotated[float, Meta(gt=0, le=100_000, description="kilowatts, above 0 and up to 100000")] = 500
    clock_ahead_max_s: Annotated[float, Meta(ge=0, le=86400, description="seconds, from 0 to 86400")] = 300
    metrics_host: Annotated[str, Meta(min_length=1, description="an address of this machine, such as 127.0.0.1")] = (
        "127.0.0.1"
    )
    metrics_port: Annotated[int, Meta(ge=1, le=65535, description="a whole number from 1 to 65535")] = 9108

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_mqtt_url()
        self._check_tls()
        if self.mqtt_share_group and self.mqtt_client_id == "fleetwatt":
            raise SettingsError(
                "MQTT_CLIENT_ID is 'fleetwatt' while MQTT_SHARE_GROUP is set; "
                "allowed: an id of its own for each daemon of the group, since each keeps a session"
            )

    @property
    def uses_tls(self) -> bool:
        """Whether the connection to the broker is encrypted."""
        return urlsplit(self.mqtt_url).scheme == "mqtts"

    def _check_mqtt_url(self) -> None:
        allowed = allowed_text(type(self), "mqtt_url")
        parts = check_url("MQTT_URL", self.mqtt_url, ("mqtt", "mqtts"), allowed)
        if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
            # A password with / ? or # in it ends up here: written as it is, it makes another host of the user.
            raise SettingsError(
                f"MQTT_URL is {without_password(self.mqtt_url)!r}; allowed: {allowed}, "
                "with / ? # @ in a password written as %2F %3F %23 %40"
            )

    def _check_tls(self) -> None:
        files = {"MQTT_CA_FILE": self.mqtt_ca_file, "MQTT_CERT_FILE": self.mqtt_cert_file}
        files["MQTT_KEY_FILE"] = self.mqtt_key_file
        for variable, path in files.items():
            if path and not self.uses_tls:
                raise SettingsError(f"{variable} is {path!r}; allowed: only together with an mqtts:// MQTT_URL")
        if bool(self.mqtt_cert_file) != bool(self.mqtt_key_file):
            given, missing = ("CERT", "KEY") if self.mqtt_cert_file else ("KEY", "CERT")
            raise SettingsError(f"MQTT_{given}_FILE is set and MQTT_{missing}_FILE is not; allowed: both or neither")
