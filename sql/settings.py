"""Settings come from environment variables, are checked whole before any I/O, and are frozen afterwards.

Rule: a variable that is wrong raises `SettingsError`, whose text is the one line that a technician reads: the
variable, its value, what is allowed. Each variable `NAME` may instead be given as `NAME_FILE`, the path of a file that
holds the value (for secrets); both at once is an error. A variable that is set but empty counts as not set.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import Meta

T = TypeVar("T", bound="DatabaseSettings")

_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
_PASSWORD_PARAMETER = re.compile(r"(password=)('[^']*'|[^&\s]+)", re.IGNORECASE)
_NO_PORT = re.compile(r"(?<=[^:\[\]/?#]):(?!\d*(?:[/?#]|$))[^\[\]]*$")
"""What stands in the place of the port and is none: a password whose host was forgotten."""


class SettingsError(Exception):
    """A setting is missing or wrong."""


class DatabaseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every process of the house needs."""

    database_url: Annotated[str, Meta(description="postgresql://USER:PASSWORD@HOST:PORT/DATABASE")]
    log_format: Annotated[Literal["console", "json"], Meta(description="console or json")] = "console"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="debug, info, warning or error")
    ] = "info"

    def __post_init__(self) -> None:
        allowed = allowed_text(type(self), "database_url")
        # Several hosts are how the driver finds the primary after a failover.
        check_url("DATABASE_URL", self.database_url, ("postgresql", "postgres"), allowed, several_hosts=True)


def check_url(
    variable: str, url: str, schemes: tuple[str, ...], allowed: str, *, several_hosts: bool = False
) -> SplitResult:
    """The parts of `url`; raises SettingsError unless it has one of the schemes and possible hosts and ports."""
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2]
        is_right = parts.scheme in schemes and "://" in url
        is_right = is_right and all(map(_is_host, hosts.split(",") if several_hosts else [hosts]))
    except ValueError:
        is_right = False
    if not is_right:
        raise SettingsError(_message(variable, url, allowed))
    return parts


def _is_host(text: str) -> bool:
    """Whether `text` can be HOST or HOST:PORT; raises ValueError for most of what cannot."""
    parts = urlsplit(f"//{text}")
    (parts.hostname or "").encode("idna")  # as a look-up of the name does, which raises the same
    return parts.port != 0


def without_password(text: str) -> str:
    """A URL, or what was meant to be one, as it may be shown: the password replaced by ***."""
    text = _PASSWORD_PARAMETER.sub(r"\1***", text)
    found = _SCHEME.match(text)
    scheme, rest = (found[0], text[found.end() :]) if found else ("", text)
    account, at, host = rest.rpartition("@")
    if not at:
        return scheme + _NO_PORT.sub(":***", rest) if scheme else text
    user, colon, _ = account.partition(":")
    return f"{scheme}{user}{colon}{'***' if colon else ''}@{host}"


def read(settings_type: type[T], environ: Mapping[str, str]) -> T:
    """Build settings from environment variables; raises SettingsError with a line for a technician."""
    values: dict[str, Any] = {}
    for field, field_type in get_type_hints(settings_type, include_extras=True).items():
        variable = field.upper()
        text = _text_of(variable, environ)
        if text is None:
            continue
        try:
            values[field] = msgspec.convert(text, field_type, strict=False)
        except msgspec.ValidationError:
            raise SettingsError(_message(variable, text, allowed_text(settings_type, field))) from None
    for info in msgspec.structs.fields(settings_type):
        if info.required and info.name not in values:
            allowed = allowed_text(settings_type, info.name)
            raise SettingsError(f"{info.name.upper()} is not set; give it as {allowed}, or {info.name.upper()}_FILE")
    return settings_type(**values)


def allowed_text(settings_type: type[DatabaseSettings], field: str) -> str:
    """What a field may hold, in words: the description in its annotation."""
    field_type = get_type_hints(settings_type, include_extras=True)[field]
    for candidate in (field_type, *get_args(field_type)):  # X, or X | None
        for meta in getattr(candidate, "__metadata__", ()):
            if isinstance(meta, Meta) and meta.description:
                return meta.description
    raise LookupError(f"{settings_type.__name__}.{field} does not say what is allowed")


def _text_of(variable: str, environ: Mapping[str, str]) -> str | None:
    direct, path = environ.get(variable), environ.get(f"{variable}_FILE")
    if direct and path:
        raise SettingsError(f"{variable} and {variable}_FILE are both set; only one of them is allowed")
    if not path:
        return direct or None
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{variable}_FILE is {path!r}, which cannot be read ({error}); allowed: the path of a readable text file"
        ) from error


def _message(variable: str, value: str, allowed: str) -> str:
    return f"{variable} is {without_password(value)!r}; allowed: {allowed}"
