"""The sidecar's settings; `sql.settings` says how they are read and what an error looks like."""

import ipaddress
from datetime import timedelta
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

from sql.settings import DatabaseSettings, SettingsError, allowed_text

PORT = "a whole number from 1 to 65535"


class ApiSettings(DatabaseSettings, frozen=True, kw_only=True):
    """Everything the sidecar can be told."""

    api_host: Annotated[str, Meta(min_length=1, description="an address of this machine, such as 127.0.0.1")] = (
        "127.0.0.1"
    )
    api_port: Annotated[int, Meta(ge=1, le=65535, description=PORT)] = 8080
    api_tokens_file: Annotated[str, Meta(description="the path of a file made by `python -m api token`")] | None = None
    api_cors_origins: (
        Annotated[str, Meta(description="origins with commas between them, such as https://dash.example, or *")] | None
    ) = None
    api_body_bytes_max: Annotated[
        int, Meta(ge=1024, le=2**32, description="a whole number of bytes from 1024 to 4294967296")
    ] = 64 * 1024 * 1024
    daemon_urls: Annotated[
        str,
        Meta(description="addresses of daemons with commas between, such as http://127.0.0.1:9108, or none"),
    ] = "http://127.0.0.1:9108"
    analytics_cache_ttl_s: Annotated[float, Meta(ge=0, le=3600, description="seconds, from 0 to 3600")] = 10
    low_efficiency: Annotated[float, Meta(gt=0, le=1, description="a ratio above 0 and up to 1")] = 0.85
    power_max_kw: Annotated[float, Meta(gt=0, le=100_000, description="kilowatts, above 0 and up to 100000")] = 500
    rejections_per_s_max: Annotated[
        float, Meta(ge=0, le=100_000, description="rejections a second, from 0 (keep all) to 100000")
    ] = 20
    retention_days: Annotated[
        int, Meta(ge=0, le=36500, description="a whole number from 0 (keep for ever) to 36500")
    ] = 400
    clock_ahead_max_s: Annotated[float, Meta(ge=0, le=86400, description="seconds, from 0 to 86400")] = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(origin == "*" or _is_origin(origin) for origin in self.cors_origins):
            allowed = allowed_text(type(self), "api_cors_origins")
            raise SettingsError(f"API_CORS_ORIGINS is {self.api_cors_origins!r}; allowed: {allowed}")
        if not all(map(_is_origin, self.daemon_url_list)):
            allowed = allowed_text(type(self), "daemon_urls")
            raise SettingsError(f"DAEMON_URLS is {self.daemon_urls!r}; allowed: {allowed}")
        if not self.api_tokens_file and not is_loopback(self.api_host):
            raise SettingsError(
                f"API_HOST is {self.api_host!r} while API_TOKENS_FILE is not set; allowed without tokens: "
                "127.0.0.1, ::1 or localhost. Make a token with: python -m api token --role admin"
            )

    @property
    def cors_origins(self) -> list[str]:
        """The origins whose pages may ask; none where CORS is off."""
        return [origin for part in (self.api_cors_origins or "").split(",") if (origin := part.strip())]

    @property
    def daemon_url_list(self) -> list[str]:
        """Where the daemons' books are; empty where the pages shall not show them."""
        if self.daemon_urls == "none":
            return []
        return [url.rstrip("/") for part in self.daemon_urls.split(",") if (url := part.strip())]

    @property
    def clock_ahead_max(self) -> timedelta:
        """How far in the future a reading's time may be."""
        return timedelta(seconds=self.clock_ahead_max_s)

    @property
    def retention(self) -> timedelta | None:
        """How old a reading may be; None: everything since the year 2000."""
        return timedelta(days=self.retention_days) if self.retention_days else None


def _is_origin(text: str) -> bool:
    """Whether it is a scheme, a host and perhaps a port, and nothing else."""
    try:
        parts = urlsplit(text)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return is_web and text == f"{parts.scheme}://{parts.netloc}" and "@" not in parts.netloc


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
