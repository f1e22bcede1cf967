"""What clients send beside readings: parameters and small bodies into Structs, and sentences about what is wrong.

Every field's annotation says what is allowed (the description in its Meta); the sentence and the OpenAPI document quote
the same words. All that is wrong is reported at once.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import quote
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta, Struct, field

from api.errors import Fault, ProblemError, invalid

T = TypeVar("T", bound=Struct)

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
WHOLE_MAX = 2**53
"""From here on a number with a decimal point or an exponent does not tell which whole number was meant."""

_STEPS = {".": "%2E", "..": "%2E%2E"}
"""Ids that clients take for steps in a path, escaped or not, and what stands for them there: no id has a %."""
_IDS = {escaped: step for step, escaped in _STEPS.items()}
_ID_PATTERN = r"^[A-Za-z0-9._:-]{1,64}\Z"
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

DeviceId = Annotated[
    str, Meta(pattern=_ID_PATTERN, description="1 to 64 of A-Z a-z 0-9 . _ : -", examples=["vehicle-0001"])
]
MeterId = Annotated[DeviceId, Meta(examples=["meter-0001"])]
_INSTANT = Meta(
    tz=True,
    description="RFC 3339 with an offset, from 2000 to 2099, such as 2026-03-14T15:00:00Z",
    examples=["2026-03-14T15:00:00Z"],
    # The years, which `format` does not say.
    extra_json_schema={"pattern": r"^20[0-9]{2}-[0-9]{2}-[0-9]{2}[Tt][0-9:.]{8,18}([Zz]|[+-][0-9]{2}:[0-9]{2})$"},
)
Instant = Annotated[datetime, _INSTANT]
Beginning = Annotated[datetime, _INSTANT, Meta(examples=["2026-03-13T15:00:00Z"])]
Limit = Annotated[int, Meta(ge=1, le=LIMIT_MAX, description=f"a whole number from 1 to {LIMIT_MAX}", examples=[100])]
_UNSET_ZONE = "Factory"
"""Beside the zones, in their form: what a machine has before somebody says where it stands."""
TimeZone = Annotated[
    str,
    Meta(
        # Nothing that lies beside the zones, such as right/... (with leap seconds) or localtime (the server's own).
        pattern=r"^[A-Z][A-Za-z0-9_+-]{0,31}(/[A-Z][A-Za-z0-9_+-]{0,31}){0,2}\Z",
        description="the name of an IANA time zone, such as Europe/Berlin",
        examples=["Europe/Berlin"],
    ),
]
Kind = Annotated[Literal["meter", "vehicle"], Meta(description="meter or vehicle", examples=["meter"])]


class NoQuery(Struct, frozen=True):
    """No parameters."""


class Window(Struct, frozen=True, kw_only=True):
    """Half-open, on the readings' own time. Left out: `to` is now, and `from` follows from it."""

    start: Beginning | None = field(default=None, name="from")
    end: Instant | None = field(default=None, name="to")

    def default_start(self, end: datetime) -> datetime:
        """Where a window with this end begins, if that is left out."""
        return end - DAY


def window(asked: Window, now: datetime, span_max: timedelta) -> tuple[datetime, datetime]:
    """The window that is meant; raises ProblemError where it is empty or too long."""
    end = asked.end or now
    start = asked.start or asked.default_start(end)
    if start >= end:
        raise invalid("query", "from", f"`from` is {start.isoformat()}, which is not before `to`, {end.isoformat()}")
    if end - start > span_max:
        raise invalid("query", "from", f"`from` and `to` are {end - start} apart; allowed: {span_max.days} days")
    return start.astimezone(UTC), end.astimezone(UTC)


def zone(name: str) -> ZoneInfo:
    """The time zone `tz`, which has the form of a name; raises ProblemError where there is none."""
    try:
        if name == _UNSET_ZONE:
            raise KeyError(name)
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # not there, no zone, a folder of zones
        detail = f"`tz` is {shown(ascii(name))}; allowed: {allowed_text(TimeZone)}"
        raise invalid("query", "tz", detail) from None


def query(struct: type[T], pairs: Iterable[tuple[str, str]]) -> T:
    """Query parameters as a Struct."""
    pairs = list(pairs)
    values = dict(pairs)
    counts = Counter(name for name, _ in pairs)
    repeated = [
        Fault("query", name, f"`{shown(name)}` is given {count} times; allowed: once")
        for name, count in counts.items()
        if count > 1
    ]
    return _build(struct, values, "query", repeated)


def path(struct: type[T], values: Mapping[str, str]) -> T:
    """Path parameters as a Struct; `segment` wrote them."""
    return _build(struct, {name: _IDS.get(value, value) for name, value in values.items()}, "path", [])


def segment(text: str) -> str:
    """A text as a part of a path, which every client leaves as it is."""
    return quote(_STEPS.get(text, text), safe="")


def body(struct: type[T], raw: bytes) -> T:
    """A JSON body as a Struct."""
    try:
        values = msgspec.json.decode(raw)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise invalid("body", "", f"The body is not JSON: {shown(str(error))}") from None
    if not isinstance(values, dict):
        raise invalid("body", "", "The body is not a JSON object")
    return _build(struct, values, "body", [])


def bare_type(annotation: Any) -> Any:
    """A field's type without `| None`: what the client may write."""
    if get_origin(annotation) is Annotated:
        return annotation
    parts = [part for part in get_args(annotation) if part is not NoneType]
    return parts[0] if parts and NoneType in get_args(annotation) and len(parts) == 1 else annotation


@cache
def field_types(struct: type[Struct]) -> dict[str, Any]:
    """Name on the wire -> type that the client may write, of each field."""
    hints = get_type_hints(struct, include_extras=True)
    return {info.encode_name: bare_type(hints[info.name]) for info in msgspec.structs.fields(struct)}


def allowed_text(annotation: Any) -> str:
    """What a type allows, in words."""
    if get_origin(annotation) is not Annotated:
        return " or ".join(str(value) for value in get_args(annotation)) or annotation.__name__
    described = (meta.description for meta in annotation.__metadata__ if isinstance(meta, Meta))
    return next((text for text in described if text), None) or allowed_text(get_args(annotation)[0])


def shown(value: Any) -> str:
    """A value from a request as it may stand in a sentence: ASCII and short."""
    text = value if isinstance(value, str) and value.isascii() and value.isprintable() else ascii(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _build(struct: type[T], values: Mapping[str, Any], where: str, faults: list[Fault]) -> T:
    types = field_types(struct)
    faults += [
        Fault(where, shown(name), f"`{shown(name)}` is not known here; allowed: {', '.join(types) or 'none'}")
        for name in values
        if name not in types
    ]
    found = {}
    for info in msgspec.structs.fields(struct):
        name = info.encode_name
        if name in values and not (where == "body" and values[name] is None and info.default is None):
            try:
                found[info.name] = _convert(values[name], types[name], where)
            except (msgspec.ValidationError, ValueError):
                detail = f"`{name}` is {shown(ascii(values[name]))}; allowed: {allowed_text(types[name])}"
                faults.append(Fault(where, name, detail))
        elif info.required:
            faults.append(Fault(where, name, f"`{name}` is missing; allowed: {allowed_text(types[name])}"))
    if faults:
        raise ProblemError(422, faults[0].detail, errors=faults)
    return struct(**found)


def _convert(value: Any, annotation: Any, where: str) -> Any:
    base = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if base is datetime:
        return _instant(value)
    value = _whole(value) if where == "body" else value
    return msgspec.convert(value, annotation, strict=where == "body" or base is not int)


def _whole(value: Any) -> Any:
    """2.0 as 2: to a JSON Schema, and to a client whose numbers are all floats, it is an integer."""
    if isinstance(value, list):
        return [_whole(element) for element in value]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < WHOLE_MAX
    return int(value) if is_whole else value


def _instant(value: Any) -> datetime:
    if not isinstance(value, str) or not _RFC_3339.fullmatch(value):
        raise ValueError("not RFC 3339")
    instant: datetime = msgspec.convert(value, Annotated[datetime, Meta(tz=True)])
    # The year as it is written, as in the schema, and before any arithmetic: the year 1 at +14:00 is no time in UTC.
    if not EARLIEST.year <= instant.year < LATEST.year:
        raise ValueError("out of the years that are kept")
    return instant.astimezone(UTC)
