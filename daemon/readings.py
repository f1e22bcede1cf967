"""What devices send, and what it means: topic and bytes in, rows or rejections out. Pure; no exception leaves it.

Rule: a strict decoder runs first, because nearly every message is well-formed and it takes half a microsecond. Only
what it refuses goes the lenient way, which takes arrays and numbers sent as text, and finds the sentence that says what
is wrong. Both end in the same checks of id, type and time.

Topic: `meters/{meterId}/reading` or `vehicles/{vehicleId}/reading`. Payload: JSON in UTF-8, an object or an array of
objects. docs/readings.md has the fields, their ranges and the reasons for a rejection.
"""

import codecs
import json
import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, get_args

import msgspec
from msgspec import Meta, Struct, field

from sql.rejections import Kept, Rejection
from sql.store import METER, VEHICLE, Kind, Row

PAYLOAD_BYTES_MAX = 1024 * 1024
"""A week of one-minute readings in one array takes less; more than this is a fault of the sender."""
ITEMS_MAX = 20_000
"""Elements of one array. Bounds what a small message can cost: an array of a million zeros has 2 MB."""
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
"""Clocks that were never set say 1970 or 1980."""

Reason = Literal[
    "malformed_json",
    "wrong_type",
    "missing_field",
    "out_of_range",
    "bad_timestamp",
    "clock_ahead",
    "too_old",
    "bad_id",
    "id_mismatch",
    "bad_topic",
    "too_large",
    "conflict",
    "refused_by_database",
]
REASONS: tuple[Reason, ...] = get_args(Reason)
MEANINGS: dict[Reason, str] = {
    "malformed_json": "not JSON, not UTF-8, or nested too deeply",
    "wrong_type": "a field or the whole is of another type; `type` contradicts the topic",
    "missing_field": "a field that must be there is not; the array is empty",
    "out_of_range": "a number outside its range",
    "bad_timestamp": (
        "not a time, or without an offset; or a retained message without a time, of which nobody knows when it was "
        "measured"
    ),
    "clock_ahead": "more than `CLOCK_AHEAD_MAX_S` in the future",
    "too_old": "older than `RETENTION_DAYS`, or before the year 2000 (a clock that was never set)",
    "bad_id": "the id has other characters or is too long",
    "id_mismatch": "the id in the payload is not the topic's",
    "bad_topic": "another topic below `meters/` or `vehicles/`",
    "too_large": "more than 1 MiB, or more than 20,000 elements; of a message above 2 MiB only the start is kept",
    "conflict": "the history has a reading of that device and time with other values; the first one stays",
    "refused_by_database": "the database refused the row; its sentence has the SQLSTATE",
}
"""When a reading is rejected for which reason."""

Timestamp: TypeAlias = Annotated[datetime, Meta(tz=True)] | float | None
"""RFC 3339 with an offset, or Unix seconds or milliseconds; absent = time of receipt."""

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# Digits match in one way only: a second one would take hours over a megabyte of them with a letter at the end.
_NUMBER = re.compile(r"[ \t]*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?[ \t]*", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS_FROM = 1e11
"""A Unix time from here on is in milliseconds: as seconds it would be in the year 5138."""


class MeterReading(Struct, frozen=True, gc=False, rename="camel"):
    """A smart meter's reading, AC, grid side."""

    kwh_consumed_ac: Annotated[float, Meta(ge=0, le=1e9)]
    """kWh"""
    voltage: Annotated[float, Meta(ge=0, le=1000)]
    """V"""
    timestamp: Timestamp = None
    device_id: str | None = field(default=None, name="meterId")
    type: str | None = None


class VehicleReading(Struct, frozen=True, gc=False, rename="camel"):
    """A vehicle's reading, DC, battery side."""

    soc: Annotated[float, Meta(ge=0, le=100)]
    """State of charge, percent"""
    kwh_delivered_dc: Annotated[float, Meta(ge=0, le=1e9)]
    """kWh"""
    battery_temp: Annotated[float, Meta(ge=-60, le=150)]
    """Degrees Celsius"""
    timestamp: Timestamp = None
    device_id: str | None = field(default=None, name="vehicleId")
    type: str | None = None


Reading: TypeAlias = MeterReading | VehicleReading


class Form(Struct, frozen=True):
    """How the readings of one kind are written, and where they go."""

    kind: Kind
    build: Callable[..., Reading]
    decode: Callable[[bytes], Reading]
    values: Callable[[Reading], tuple[float, ...]]
    id_key: str
    ranges: dict[str, tuple[float, float]]
    """Key in the payload -> least and greatest value allowed."""
    marks: tuple[bytes, ...]
    """Those keys as they stand in a payload that escapes nothing."""


def _form(kind: Kind, struct: type[Reading], values: Callable[[Any], tuple[float, ...]]) -> Form:
    keys = {info.name: info.encode_name for info in msgspec.structs.fields(struct)}
    ranges = {}
    for info in msgspec.structs.fields(struct):
        for meta in getattr(info.type, "__metadata__", ()):
            ranges[info.encode_name] = (meta.ge, meta.le)
    marks = tuple(f'"{key}"'.encode() for key in ranges)
    return Form(kind, struct, msgspec.json.Decoder(struct).decode, values, keys["device_id"], ranges, marks)


METER_FORM = _form(METER, MeterReading, lambda reading: (reading.kwh_consumed_ac, reading.voltage))
VEHICLE_FORM = _form(
    VEHICLE, VehicleReading, lambda reading: (reading.soc, reading.kwh_delivered_dc, reading.battery_temp)
)
FORMS = {"meters": METER_FORM, "vehicles": VEHICLE_FORM}


NO_TOPIC = "http"
"""Stands for the topic of what came over HTTP and did not say from which device."""


def topic_of(kind: Kind, device: str) -> str:
    """The topic on which a device's readings come."""
    return f"{kind.name}s/{device}/reading"


class Rules(Struct, frozen=True):
    """Which times are believed."""

    clock_ahead_max: timedelta
    retention: timedelta | None
    """None: everything since the year 2000."""


class ReceiptClock:
    """Times of receipt. Strictly increasing, so that no two readings without a time of their own share a key."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._last = EARLIEST

    def now(self) -> datetime:
        """The time, and at least a microsecond more than was last handed out."""
        self._last = max(self._now(), self._last + timedelta(microseconds=1))
        return self._last


class Receipt:
    """The moment in which messages were received, with the times that are believed in it."""

    __slots__ = ("_clock", "at", "earliest", "latest")

    def __init__(self, rules: Rules, clock: ReceiptClock) -> None:
        self._clock = clock
        self.at = clock.now()
        self.latest = self.at + rules.clock_ahead_max
        self.earliest = max(EARLIEST, self.at - rules.retention) if rules.retention else EARLIEST

    def time_of_measurement(self) -> datetime:
        """When a reading that does not say so was measured: now, and never the same instant twice."""
        return self._clock.now()


class LateReceipt(Receipt):
    """The receipt of what a broker had retained: nobody knows since when."""

    __slots__ = ()

    def time_of_measurement(self) -> datetime:
        """Refuses: the time of receipt would be a lie."""
        _refuse_unknown_time()


class PastReceipt(Receipt):
    """The receipt of a message that is decoded again later: received then, believed by the clock of now."""

    __slots__ = ("_is_late",)

    def __init__(self, rules: Rules, now: datetime, at: datetime, clock: ReceiptClock, *, is_late: bool) -> None:
        """`at` is the time of receipt; `clock` gives those of readings that have none; `is_late` as in LateReceipt."""
        self._clock = clock
        self._is_late = is_late
        self.at = at
        self.latest = max(now, at) + rules.clock_ahead_max
        self.earliest = max(EARLIEST, now - rules.retention) if rules.retention else EARLIEST

    def time_of_measurement(self) -> datetime:
        """When it was received, unless nobody knows since when it had been retained."""
        if self._is_late:
            _refuse_unknown_time()
        ts = self._clock.now()
        if ts < self.earliest:
            _refuse_time(ts, self)
        return ts


class Decoded(Struct, gc=False):
    """What became of one message. `len(rows) + len(rejections)` is how many readings it counts for."""

    kind: Kind | None
    rows: Sequence[Row]
    rejections: Sequence[Rejection] = ()


class _Refused(Exception):  # noqa: N818 - never leaves this file; it carries a reason, it is no error of ours
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def decode(topic: str, payload: bytes, receipt: Receipt) -> Decoded:
    """Decode one message.

    Rows are `(device, ts, value, ..., received_at, payload)`, with values in the order of the history table's columns
    and the payload cut down to the element where the message is an array.
    """
    try:
        form, device = _parse_topic(topic)
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise _Refused(
                "too_large", f"the payload has {len(payload)} bytes; at most {PAYLOAD_BYTES_MAX} are allowed"
            )
        if not payload.isascii():
            _check_utf8(payload)
        try:
            reading = form.decode(payload)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return _decode_leniently(form, device, topic, payload, receipt)
        return Decoded(form.kind, (_row(form, device, reading, payload, receipt),))
    except _Refused as refused:
        return Decoded(None, (), (Rejection(receipt.at, topic, refused.reason, refused.detail, payload),))


def decode_item(item: bytes, receipt: Receipt) -> Decoded:
    """Decode one reading that came without a topic: `type` or its fields tell its kind, and its id is in it.

    The kind is that of `type`; without it, the one whose values are all there; else the one whose id is there.
    """
    try:
        if not item.isascii():
            _check_utf8(item)
        form, reading = _strict_item(item) or _lenient_item(item)
    except _Refused as refused:
        return Decoded(None, (), (Rejection(receipt.at, NO_TOPIC, refused.reason, refused.detail, item),))
    device, topic = reading.device_id, NO_TOPIC
    try:
        if device is None:
            raise _Refused("missing_field", f"`{form.id_key}` is missing")
        if not _ID.fullmatch(device):
            _refuse_id(form, device, device)
        topic = topic_of(form.kind, device)
        return Decoded(form.kind, (_row(form, device, reading, item, receipt),))
    except _Refused as refused:
        return Decoded(None, (), (Rejection(receipt.at, topic, refused.reason, refused.detail, item),))


def decode_again(kept: Kept, rules: Rules, now: datetime) -> Decoded:
    """Decode what was rejected, which was received then and is judged by the clock of now.

    A reading without a time gets that of its receipt, moved by up to a second or so: by its id, so that it is the same
    at each replay and another one than that of its neighbours.
    """
    rejected = kept.rejection
    moved = timedelta(microseconds=kept.id % 1_000_000)
    # The reason is kept and the flag `retained` is not; no other message without a time has this reason.
    is_late = rejected.reason == "bad_timestamp"
    clock = ReceiptClock(lambda: rejected.received_at + moved)
    receipt = PastReceipt(rules, now, rejected.received_at, clock, is_late=is_late)
    if rejected.topic == NO_TOPIC:
        return decode_item(rejected.payload, receipt)
    return decode(rejected.topic, rejected.payload, receipt)


def _strict_item(item: bytes) -> tuple[Form, Reading] | None:
    """The reading where its kind is plain to see and the strict decoder takes it; else the lenient way decides."""
    seen = [form for form in FORMS.values() if all(mark in item for mark in form.marks)]
    if len(seen) != 1 or b"\\" in item:
        return None
    form = seen[0]
    try:
        reading = form.decode(item)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return (form, reading) if reading.type is None or reading.type.lower() == form.kind.name else None


def _lenient_item(item: bytes) -> tuple[Form, Reading]:
    found = _parse(item)
    if not isinstance(found, dict):
        raise _Refused("wrong_type", f"expected an object with the fields of a reading, got {_shown(found)}")
    form = _form_of(found)
    return form, _build(form, found)


def _form_of(found: dict[str, Any]) -> Form:
    kind_name = _text(found, "type")
    if kind_name is not None:
        for form in FORMS.values():
            if kind_name.lower() == form.kind.name:
                return form
        raise _Refused("wrong_type", f"`type` is {_shown(kind_name)}; allowed: meter or vehicle")
    complete = [form for form in FORMS.values() if found.keys() >= form.ranges.keys()]
    named = [form for form in FORMS.values() if form.id_key in found]
    for forms in (complete, named):
        if len(forms) == 1:
            return forms[0]
    raise _Refused("missing_field", "the kind cannot be told; give `type`, and `meterId` or `vehicleId`")


def _parse_topic(topic: str) -> tuple[Form, str]:
    parts = topic.split("/")
    form = FORMS.get(parts[0])
    if form is None or len(parts) != 3 or parts[2] != "reading":
        raise _Refused(
            "bad_topic",
            f"the topic is {_shown(topic)}; allowed: meters/{{meterId}}/reading or vehicles/{{vehicleId}}/reading",
        )
    if not _ID.fullmatch(parts[1]):
        raise _Refused("bad_id", f"the id in the topic is {_shown(parts[1])}; allowed: 1 to 64 of A-Z a-z 0-9 . _ : -")
    return form, parts[1]


def _check_utf8(payload: bytes) -> None:
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Refused("malformed_json", f"the payload is not UTF-8: {error.reason} at byte {error.start}") from None


def _row(form: Form, device: str, reading: Reading, payload: bytes, receipt: Receipt) -> Row:
    """The checks that a type cannot express: id, type and time."""
    if reading.device_id is not None and reading.device_id != device:
        _refuse_id(form, device, reading.device_id)
    if reading.type is not None and reading.type.lower() != form.kind.name:
        raise _Refused("wrong_type", f"`type` is {_shown(reading.type)}, but the topic is that of a {form.kind.name}")
    ts = reading.timestamp
    if ts is None:
        ts = receipt.time_of_measurement()
        return (device, ts, *form.values(reading), ts, payload)
    if not isinstance(ts, datetime):
        ts = _from_unix(ts)
    if not receipt.earliest <= ts <= receipt.latest:
        _refuse_time(ts, receipt)
    return (device, ts if ts.tzinfo is UTC else ts.astimezone(UTC), *form.values(reading), receipt.at, payload)


def _refuse_id(form: Form, device: str, found: str) -> NoReturn:
    if not _ID.fullmatch(found):
        raise _Refused("bad_id", f"`{form.id_key}` is {_shown(found)}; allowed: 1 to 64 of A-Z a-z 0-9 . _ : -")
    raise _Refused("id_mismatch", f"`{form.id_key}` is {_shown(found)}, but the topic says {device!a}")


def _refuse_unknown_time() -> NoReturn:
    raise _Refused("bad_timestamp", "`timestamp` is missing in a retained message, of which nobody knows the time")


def _refuse_time(ts: datetime, receipt: Receipt) -> NoReturn:
    if ts > receipt.latest:
        ahead_s = (ts - receipt.at).total_seconds()
        allowed_s = (receipt.latest - receipt.at).total_seconds()
        raise _Refused("clock_ahead", f"`timestamp` is {ahead_s:.0f} s ahead; at most {allowed_s:.0f} s are allowed")
    raise _Refused(
        "too_old", f"`timestamp` is {ts.isoformat()}; the earliest that is kept is {receipt.earliest.isoformat()}"
    )


def _from_unix(number: float) -> datetime:
    unit = "milliseconds" if abs(number) >= _MILLISECONDS_FROM else "seconds"
    try:
        return _EPOCH + timedelta(**{unit: number})
    except (OverflowError, ValueError):
        raise _Refused("bad_timestamp", f"`timestamp` is {number!r}, which is no Unix time") from None


def _decode_leniently(form: Form, device: str, topic: str, payload: bytes, receipt: Receipt) -> Decoded:
    rows: list[Row] = []
    rejections: list[Rejection] = []
    for item in _items(payload):
        try:
            rows.append(_row(form, device, _lenient(form, item), item, receipt))
        except _Refused as refused:
            rejections.append(Rejection(receipt.at, topic, refused.reason, refused.detail, item))
    return Decoded(form.kind, rows, rejections)


_decode_raw_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _items(payload: bytes) -> list[bytes]:
    """The elements of an array, each as the bytes that came; a payload that is no array is its own element."""
    text = payload.removeprefix(codecs.BOM_UTF8)
    if not text.lstrip().startswith(b"["):
        return [payload]
    try:
        items = [bytes(raw).strip() for raw in _decode_raw_items(text)]
    except (msgspec.DecodeError, ValueError):
        items = _split_by_hand(text.decode("utf-8"))
    except RecursionError:
        raise _Refused("malformed_json", "the JSON is nested too deeply") from None
    if not items:
        raise _Refused("missing_field", "the array is empty")
    if len(items) > ITEMS_MAX:
        raise _Refused("too_large", f"the array has {len(items)} elements; at most {ITEMS_MAX} are allowed")
    return items


_SEPARATOR = re.compile(r"[ \t\r\n]*([,\]])[ \t\r\n]*")
_scan = json.JSONDecoder(parse_int=float).raw_decode  # takes NaN, which no JSON has and some firmware sends


def _split_by_hand(text: str) -> list[bytes]:
    """The elements of an array of which one has NaN in it, so that its neighbours need not go with it."""
    items: list[bytes] = []
    at = len(text) - len(text.lstrip().removeprefix("[").lstrip())
    try:
        while True:
            _, end = _scan(text, at)
            items.append(text[at:end].encode())
            separator = _SEPARATOR.match(text, end)
            if separator is None:
                raise _Refused("malformed_json", f"the payload is not JSON: expected , or ] at character {end}")
            at = separator.end()
            if separator[1] == "]":
                break
    except ValueError as error:
        raise _Refused("malformed_json", _json_fault(error)) from None
    except RecursionError:
        raise _Refused("malformed_json", "the JSON is nested too deeply") from None
    if at < len(text):
        raise _Refused("malformed_json", f"the payload is not JSON: something follows the array at character {at}")
    return items


def _lenient(form: Form, item: bytes) -> Reading:
    """One element as a reading, the strict way where it is good enough; raises _Refused with what is wrong."""
    try:
        return form.decode(item)
    except (msgspec.DecodeError, ValueError, RecursionError):
        found = _parse(item)
    if not isinstance(found, dict):
        raise _Refused("wrong_type", f"expected an object with the fields of a {form.kind.name}, got {_shown(found)}")
    return _build(form, found)


def _build(form: Form, found: dict[str, Any]) -> Reading:
    values = [_number(found, key, least, greatest) for key, (least, greatest) in form.ranges.items()]
    device_id, kind_name = (_text(found, key) for key in (form.id_key, "type"))
    return form.build(*values, _timestamp(found.get("timestamp")), device_id, kind_name)


def _parse(item: bytes) -> Any:
    # The standard library's parser and not msgspec's: it takes a number beyond the range of a double for infinity,
    # so that it is out of range and not malformed.
    try:
        return json.loads(item.decode("utf-8-sig"), parse_int=_whole_number, parse_constant=_refuse_constant)
    except ValueError as error:
        raise _Refused("malformed_json", _json_fault(error)) from None
    except RecursionError:
        raise _Refused("malformed_json", "the JSON is nested too deeply") from None


def _whole_number(digits: str) -> int | float:
    """Python refuses to read integers of more than 4300 digits; what needs more than 20 is out of every range here."""
    return int(digits) if len(digits) <= 20 else float(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused("malformed_json", f"{name} is not JSON")


def _json_fault(error: Exception) -> str:
    return f"the payload is not JSON: {error}"


def _number(found: dict[str, Any], key: str, least: float, greatest: float) -> float:
    if key not in found:
        raise _Refused("missing_field", f"`{key}` is missing")
    value = found[key]
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Refused("wrong_type", f"`{key}` is {_shown(value)}; a number is expected")
    if not (least <= value <= greatest and math.isfinite(value)):
        raise _Refused("out_of_range", f"`{key}` is {_shown(value)}; allowed: {least:g} to {greatest:g}")
    return float(value)


def _text(found: dict[str, Any], key: str) -> str | None:
    value = found.get(key)
    if value is None or isinstance(value, str):
        return value
    raise _Refused("wrong_type", f"`{key}` is {_shown(value)}; text is expected")


def _timestamp(value: Any) -> datetime | float | None:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return _finite(value)
    try:
        instant: datetime = msgspec.convert(value, Annotated[datetime, Meta(tz=True)])
    except (msgspec.ValidationError, UnicodeEncodeError):  # the latter for half a surrogate pair
        raise _Refused(
            "bad_timestamp",
            f"`timestamp` is {_shown(value)}; allowed: RFC 3339 with an offset, or Unix seconds or milliseconds",
        ) from None
    return instant


def _finite(number: float | None) -> float | None:
    if number is None or math.isfinite(number):
        return number
    raise _Refused("bad_timestamp", "`timestamp` is a number without end, which is no Unix time")


def _shown(value: Any) -> str:
    """A value from a message as it may stand in a sentence: ASCII and short."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
