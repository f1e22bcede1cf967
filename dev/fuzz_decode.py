"""Fuzz target: decoding. The input is a topic, a line feed and a payload; with no topic, one item of an HTTP request.

Besides the promises of daemon/readings.py, its outcome is compared with a second reading of the same bytes by Python's
`json` and `datetime`, and with its own lenient way, which a byte order mark enforces.
"""

import codecs
import json
import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from daemon.readings import (
    FORMS,
    PAYLOAD_BYTES_MAX,
    REASONS,
    Decoded,
    Form,
    LateReceipt,
    Receipt,
    ReceiptClock,
    Rules,
    decode,
    decode_again,
    decode_item,
)
from dev.fuzz_target import Target, expect
from sql.rejections import Kept

NOW = datetime(2026, 3, 14, 15, 9, 26, 535_897, tzinfo=UTC)
RULES = Rules(clock_ahead_max=timedelta(seconds=300), retention=None)
_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_ROUNDING = timedelta(microseconds=2)
_RECORDED = Path(__file__).parent.parent / "tests" / "data" / "vehicle_gueni_2023-05-16.ndjson"


def check(data: bytes) -> None:
    """Decode, twice and in two ways, and hold the outcome against what the bytes say."""
    head, _, payload = data.partition(b"\n")
    topic = head.decode("utf-8", "replace")  # no other text can come: the codec refuses a topic that is no UTF-8
    decoded = _decoded(topic, payload)
    expect(_outcome(decoded) == _outcome(_decoded(topic, payload)), "decoding again gives the same", decoded)
    _check_rejections(decoded, topic, payload)
    for row in decoded.rows:
        _check_row(decoded, row, topic, payload)
    _check_json(decoded, payload)
    _check_lenient_way(decoded, topic, payload)
    if topic:
        late = decode(topic, payload, LateReceipt(RULES, ReceiptClock(lambda: NOW)))
        expect(_count(late) == _count(decoded), "a retained message counts for as many", decoded, late)
        expect(all(row in decoded.rows for row in late.rows), "a retained message gives no other rows", late)


def _decoded(topic: str, payload: bytes) -> Decoded:
    receipt = Receipt(RULES, ReceiptClock(lambda: NOW))
    return decode(topic, payload, receipt) if topic else decode_item(payload, receipt)


def _count(decoded: Decoded) -> int:
    return len(decoded.rows) + len(decoded.rejections)


def _outcome(decoded: Decoded) -> tuple[Any, ...]:
    return decoded.kind, [*decoded.rows], [*decoded.rejections]


def _without_bytes(decoded: Decoded) -> tuple[Any, ...]:
    kind = decoded.kind if decoded.rows else None  # nobody asks for it where there is no row
    return kind, [row[:-1] for row in decoded.rows], [rejection.reason for rejection in decoded.rejections]


def _check_rejections(decoded: Decoded, topic: str, payload: bytes) -> None:
    expect(_count(decoded) >= 1, "every message counts", decoded)
    for rejection in decoded.rejections:
        expect(rejection.reason in REASONS, "a rejection has a documented reason", rejection)
        expect(rejection.payload in payload, "a rejection keeps the bytes that came", rejection)
        expect(not topic or rejection.topic == topic, "a rejection keeps the topic", rejection)
        sound = 0 < len(rejection.detail) <= 300 and rejection.detail.isascii() and rejection.detail.isprintable()
        expect(sound, "a rejection has a short sentence in plain characters", rejection)
        expect(_count(decode_again(Kept(1, rejection), RULES, NOW)) >= 1, "a rejection can be replayed", rejection)


def _check_row(decoded: Decoded, row: tuple[Any, ...], topic: str, payload: bytes) -> None:
    """A row can be stored, and says what its bytes say."""
    device, ts, *values, received_at, item = row
    (form,) = [form for form in FORMS.values() if form.kind is decoded.kind]
    expect(item in payload, "a row keeps the bytes that came", row)
    expect(_ID.fullmatch(device) is not None, "an id has only allowed characters", row)
    expect(not topic or topic == f"{form.kind.name}s/{device}/reading", "the device is that of the topic", row)
    at_most = NOW + RULES.clock_ahead_max
    expect(ts.tzinfo is UTC and datetime(2000, 1, 1, tzinfo=UTC) <= ts <= at_most, "the time is believable", row)
    expect(NOW <= received_at <= NOW + timedelta(seconds=1), "the time of receipt is that of the receipt", row)
    said = _reference(item)
    expect(isinstance(said, dict), "only an object gives a row", row)
    expect(topic == "" or said.get(form.id_key) in (None, device), "the id in the payload is that of the topic", row)
    for value, (key, (least, greatest)) in zip(values, form.ranges.items(), strict=True):
        expect(type(value) is float and math.isfinite(value), "a value is a finite float", row)
        expect(least <= value <= greatest, "a value is in its range", row)
        expect(_same(value, said[key]), "a value is what the payload says", row, key)
    _check_time(ts, said.get("timestamp"), received_at, row)


def _same(value: float, said: Any) -> bool:
    return not isinstance(said, bool) and isinstance(said, int | float | str) and float(said) == value


def _check_time(ts: datetime, said: Any, received_at: datetime, row: tuple[Any, ...]) -> None:
    if said is None:
        expect(ts == received_at, "without a time it is that of receipt", row)
        return
    if isinstance(said, str) and not re.match(r"\d{4}-", said):
        said = float(said)
    if isinstance(said, str):
        meant = datetime.fromisoformat(said.upper())
    else:
        meant = datetime.fromtimestamp(said / 1000 if abs(said) >= 1e11 else said, UTC)
    expect(abs(meant - ts) <= _ROUNDING, "the time is what the payload says", row, meant)


class _NotJson(Exception):  # noqa: N818 - never leaves this file
    pass


def _no_constant(name: str) -> None:
    raise _NotJson(name)


def _reference(payload: bytes) -> Any:
    """What Python's own parser makes of the bytes; raises _NotJson."""
    try:
        return json.loads(payload.decode("utf-8-sig"), parse_int=float, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _NotJson(str(error)) from error


def _check_json(decoded: Decoded, payload: bytes) -> None:
    """What is no JSON is never stored, and what is JSON is never called malformed."""
    malformed = any(rejection.reason == "malformed_json" for rejection in decoded.rejections)
    try:
        _reference(payload)
    except _NotJson as error:
        is_array = payload.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
        expect(is_array or not decoded.rows, "what is no JSON is not stored", decoded, error)
    else:
        expect(not malformed, "what is JSON is not called malformed", decoded)


def _check_lenient_way(decoded: Decoded, topic: str, payload: bytes) -> None:
    if len(payload) + len(codecs.BOM_UTF8) > PAYLOAD_BYTES_MAX or payload.startswith(codecs.BOM_UTF8):
        return
    lenient = _decoded(topic, codecs.BOM_UTF8 + payload)
    expect(_without_bytes(lenient) == _without_bytes(decoded), "both ways agree", decoded, lenient)


def _seeds() -> tuple[bytes, ...]:
    meter = b'{"meterId":"m-1","timestamp":"2026-03-14T15:00:00Z","kwhConsumedAc":1.5,"voltage":230.0,"type":"meter"}'
    vehicle = (
        b'{"vehicleId":"v-1","timestamp":1773500400250,"soc":80,"kwhDeliveredDc":1.25,"batteryTemp":-0.5,'
        b'"type":"Vehicle","other":{"a":[1,null,true,"\\u00e4\\ud83d\\udd0b\\n"]}}'
    )
    texts = b'{"kwhConsumedAc":"+1.5e0","voltage":" 230 ","timestamp":"1773500400.25"}'
    offset = b'{"kwhConsumedAc":0,"voltage":1e3,"timestamp":"2026-03-14t16:00:00.1234567+01:00"}'
    array = b" [" + b" ,\n".join([meter, texts, offset, b"null", b'{"voltage":NaN}']) + b"] "
    at_meter, at_vehicle = b"meters/m-1/reading\n", b"vehicles/v-1/reading\n"
    made = [
        *(at_meter + payload for payload in (meter, texts, offset, array, b"[]", codecs.BOM_UTF8 + meter)),
        at_vehicle + vehicle,
        b"\n" + meter,
        b"\n" + vehicle,
        b"\n" + texts,
        b"meters/\xc3\xa4/reading\n" + meter,
        b"meters/m-1/status\n" + meter,
    ]
    wrong = (b"true", b"null", b'""', b"[1]", b"-1e3", b"1e999", b'"\\ud800"', b'"NaN"', b"1e17")
    parts = (b"1.5", b"230.0", b'"2026-03-14T15:00:00Z"', b'"m-1"', b'"meter"')
    made += [at_meter + meter.replace(part, value) for part in parts for value in wrong]
    recorded = [json.loads(line) for line in _RECORDED.read_text(encoding="utf-8").splitlines()[:20]]
    made += [f"{each['topic']}\n{json.dumps(each['payload'])}".encode() for each in recorded]
    return tuple(made)


def _words() -> tuple[bytes, ...]:
    forms: list[Form] = [*FORMS.values()]
    keys = [key.encode() for form in forms for key in (*form.ranges, form.id_key, form.kind.name)]
    values = [b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-0", b"5e-324", b"1e11", b"99999999999", b"\\ud800"]
    times = [b"2026-03-14T15:00:00Z", b"2000-01-01T00:00:00+14:00", b"0001-01-01T00:00:00Z", b"9999-12-31T23:59:60Z"]
    marks = [
        b'"timestamp":',
        b'"type":',
        b"meters/",
        b"vehicles/",
        b"/reading",
        codecs.BOM_UTF8,
        b"\\u0000",
        b"[[",
        b"[{",
    ]
    return (*keys, *values, *times, *marks)


TARGET = Target(check, _seeds(), _words(), bytes_max=4096)
