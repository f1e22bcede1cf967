"""The contract of topics and payloads. Pure: bytes and a clock in, rows and rejections out."""

import json
import math
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daemon.readings import (
    EARLIEST,
    FORMS,
    ITEMS_MAX,
    PAYLOAD_BYTES_MAX,
    REASONS,
    Decoded,
    Form,
    Receipt,
    ReceiptClock,
    Rules,
    decode,
    topic_of,
)
from sql.store import METER, VEHICLE, Kind

NOW = datetime(2026, 3, 14, 15, 9, 26, 535_897, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
RETENTION = timedelta(days=400)
RULES = Rules(clock_ahead_max=timedelta(seconds=300), retention=RETENTION)
FOR_EVER = Rules(clock_ahead_max=timedelta(seconds=300), retention=None)

METER_TOPIC, VEHICLE_TOPIC = "meters/m-1/reading", "vehicles/v-1/reading"
METER_FIELDS = {"kwhConsumedAc": 1.5, "voltage": 230.0}
VEHICLE_FIELDS = {"soc": 80.0, "kwhDeliveredDc": 1.25, "batteryTemp": 21.5}
FIELDS = {METER_TOPIC: METER_FIELDS, VEHICLE_TOPIC: VEHICLE_FIELDS}

ABSENT = object()


def receipt(rules: Rules = RULES) -> Receipt:
    return Receipt(rules, ReceiptClock(lambda: NOW))


def meter(**changes: Any) -> bytes:
    """A meter's payload with some fields changed, added or (ABSENT) left out."""
    return payload(METER_TOPIC, **changes)


def payload(topic: str, **changes: Any) -> bytes:
    fields = {key: value for key, value in {**FIELDS[topic], **changes}.items() if value is not ABSENT}
    return json.dumps(fields).encode()


def with_raw(key: str, text: bytes) -> bytes:
    """A meter's payload in which the value of a key is exactly these bytes."""
    others = {name: number for name, number in METER_FIELDS.items() if name != key}
    return b'{"%s":%s,%s' % (key.encode(), text, json.dumps(others).encode()[1:])


def taken(message: bytes, topic: str = METER_TOPIC, rules: Rules = RULES) -> tuple[Any, ...]:
    """The one row that a message is decoded to."""
    decoded = decode(topic, message, receipt(rules))
    assert not decoded.rejections, decoded.rejections
    (row,) = decoded.rows
    return row


def refused(message: bytes, topic: str = METER_TOPIC, rules: Rules = RULES) -> tuple[str, str]:
    """The reason and the sentence for which a message is rejected as a whole."""
    decoded = decode(topic, message, receipt(rules))
    assert not decoded.rows, decoded.rows
    (rejection,) = decoded.rejections
    assert (rejection.received_at, rejection.topic, rejection.payload) == (NOW, topic, message)
    return rejection.reason, rejection.detail


def reason_for(message: bytes, topic: str = METER_TOPIC, rules: Rules = RULES) -> str:
    return refused(message, topic, rules)[0]


# What is taken.


def test_a_meter_reading_becomes_a_row_of_the_history_with_its_bytes() -> None:
    message = meter(meterId="m-1", timestamp="2026-03-14T15:00:00Z", type="meter")
    assert METER.columns == ("meter_id", "ts", "kwh_consumed_ac", "voltage", "received_at")
    assert taken(message) == ("m-1", datetime(2026, 3, 14, 15, tzinfo=UTC), 1.5, 230.0, NOW, message)


def test_a_vehicle_reading_becomes_a_row_of_the_history_with_its_bytes() -> None:
    message = payload(VEHICLE_TOPIC, vehicleId="v-1", timestamp="2026-03-14T15:00:00Z", type="vehicle")
    assert VEHICLE.columns == ("vehicle_id", "ts", "soc", "kwh_delivered_dc", "battery_temp", "received_at")
    ts = datetime(2026, 3, 14, 15, tzinfo=UTC)
    assert taken(message, VEHICLE_TOPIC) == ("v-1", ts, 80.0, 1.25, 21.5, NOW, message)


@pytest.mark.parametrize(("kind", "topic"), [(METER, METER_TOPIC), (VEHICLE, VEHICLE_TOPIC)])
def test_the_kind_is_that_of_the_topic_and_the_topic_that_of_the_kind(kind: Kind, topic: str) -> None:
    assert decode(topic, payload(topic), receipt()).kind is kind
    assert topic_of(kind, topic.split("/")[1]) == topic


RANGES = [
    (METER_TOPIC, "kwhConsumedAc", 0, 1e9),
    (METER_TOPIC, "voltage", 0, 1000),
    (VEHICLE_TOPIC, "soc", 0, 100),
    (VEHICLE_TOPIC, "kwhDeliveredDc", 0, 1e9),
    (VEHICLE_TOPIC, "batteryTemp", -60, 150),
]


def test_the_table_of_ranges_names_every_value() -> None:
    assert {key for _, key, _, _ in RANGES} == {key for form in FORMS.values() for key in form.ranges}


@pytest.mark.parametrize(("topic", "key", "least", "greatest"), RANGES)
def test_a_value_is_taken_at_its_bounds(topic: str, key: str, least: float, greatest: float) -> None:
    for bound in (least, greatest):
        for written in (bound, float(bound), str(bound)):
            assert bound in taken(payload(topic, **{key: written}), topic)


@pytest.mark.parametrize(("topic", "key", "least", "greatest"), RANGES)
def test_a_value_just_beyond_its_bounds_is_out_of_range(topic: str, key: str, least: float, greatest: float) -> None:
    for value in (math.nextafter(least, -math.inf), math.nextafter(greatest, math.inf)):
        for written in (value, str(value)):
            reason, detail = refused(payload(topic, **{key: written}), topic)
            assert reason == "out_of_range"
            assert f"`{key}`" in detail
            assert f"{least:g} to {greatest:g}" in detail


@pytest.mark.parametrize(("topic", "key", "least", "greatest"), RANGES)
def test_a_value_that_is_missing_is_named(topic: str, key: str, least: float, greatest: float) -> None:
    assert refused(payload(topic, **{key: ABSENT}), topic) == ("missing_field", f"`{key}` is missing")


@pytest.mark.parametrize(("topic", "key", "least", "greatest"), RANGES)
@pytest.mark.parametrize(
    "value", [None, True, False, "", " ", "abc", "1,5", "1_0", "0x10", "1e", "NaN", "Infinity", "-inf", "١", [1], {}]
)
def test_a_value_that_is_no_number_has_the_wrong_type(
    topic: str, key: str, least: float, greatest: float, value: Any
) -> None:
    reason, detail = refused(payload(topic, **{key: value}), topic)
    assert reason == "wrong_type"
    assert f"`{key}`" in detail


@pytest.mark.parametrize(
    ("text", "number"),
    [("12.3", 12.3), ("12", 12), (" 12.3\t", 12.3), ("+12", 12), ("1.2e1", 12), ("12.", 12), (".5", 0.5), ("-0", 0)],
)
def test_a_number_sent_as_text_is_taken(text: str, number: float) -> None:
    assert taken(meter(voltage=text))[3] == number


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
def test_constants_that_are_not_json_are_malformed(constant: bytes) -> None:
    assert reason_for(with_raw("voltage", constant)) == "malformed_json"
    assert reason_for(with_raw("timestamp", constant)) == "malformed_json"
    assert reason_for(with_raw("unknown", constant)) == "malformed_json"


@pytest.mark.parametrize("digits", [b"1e400", b"-1e400", b"1" * 30, b"1" * 400, b"1" * 5000, b"1" * 5000 + b".5"])
def test_a_number_too_large_for_anything_is_out_of_range_and_not_malformed(digits: bytes) -> None:
    assert reason_for(with_raw("voltage", digits)) == "out_of_range"
    assert reason_for(with_raw("voltage", b'"%s"' % digits)) == "out_of_range"
    assert reason_for(with_raw("timestamp", digits)) == "bad_timestamp"
    assert taken(with_raw("unknown", digits))[2:4] == (1.5, 230.0)
    assert taken(b'{"unknown":%s,"kwhConsumedAc":"1.5","voltage":230}' % digits)[2:4] == (1.5, 230.0)


@pytest.mark.parametrize("filling", ["1", " ", "1.", "e1", "\t"])
def test_half_a_megabyte_of_what_is_nearly_a_number_is_refused_at_once(filling: str) -> None:
    started_at_s = time.monotonic()
    text = filling * (500_000 // len(filling)) + "x"
    assert reason_for(meter(voltage=text)) == "wrong_type"
    assert reason_for(meter(timestamp=text)) == "bad_timestamp"
    assert time.monotonic() - started_at_s < 5


# Ids, types, topics.


@pytest.mark.parametrize("name", ["m", "M-1", "a.b_c:d-e", "0" * 64, "AA:BB:CC:DD:EE:FF"])
def test_every_id_of_the_allowed_characters_is_taken(name: str) -> None:
    for fields in (meter(), meter(meterId=name), meter(meterId=None)):
        assert taken(fields, f"meters/{name}/reading")[0] == name


@pytest.mark.parametrize("name", ["", " ", "a b", "a\n", "a\0", "0" * 65, "ä", "a,b", "é", "\u200b", "$SYS", "a%2F"])
def test_an_id_of_other_characters_is_bad_in_the_topic_and_in_the_payload(name: str) -> None:
    assert reason_for(meter(), f"meters/{name}/reading") == "bad_id"
    assert reason_for(meter(meterId=name)) == "bad_id"


@pytest.mark.parametrize("name", ["m-2", "M-1", "m-1.", "m-"])
def test_an_id_in_the_payload_must_be_that_of_the_topic(name: str) -> None:
    assert refused(meter(meterId=name)) == ("id_mismatch", f"`meterId` is '{name}', but the topic says 'm-1'")


@pytest.mark.parametrize("value", [1, 1.5, True, [], {}])
def test_an_id_or_a_type_that_is_no_text_has_the_wrong_type(value: Any) -> None:
    assert reason_for(meter(meterId=value)) == "wrong_type"
    assert reason_for(meter(type=value)) == "wrong_type"


def test_the_id_of_the_other_kind_is_an_unknown_field() -> None:
    assert taken(meter(vehicleId="somebody else"))[0] == "m-1"


@pytest.mark.parametrize("name", ["meter", "Meter", "METER", "mEtEr"])
def test_the_type_is_taken_in_any_case(name: str) -> None:
    assert taken(meter(type=name))[0] == "m-1"


@pytest.mark.parametrize("name", ["vehicle", "meters", "", "meter ", "meter\n", "\0"])
def test_a_type_that_disagrees_with_the_topic_is_wrong(name: str) -> None:
    assert reason_for(meter(type=name)) == "wrong_type"


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "meters",
        "meters/m-1",
        "meters/m-1/readings",
        "meters/m-1/reading/",
        "/meters/m-1/reading",
        "Meters/m-1/reading",
        "meters/m-1/status/reading",
        "meter/m-1/reading",
        "trucks/t-1/reading",
        "$share/group/meters/m-1/reading",
    ],
)
def test_a_topic_beside_the_contract_is_a_bad_topic(topic: str) -> None:
    assert reason_for(meter(), topic) == "bad_topic"


# Times.

WHEN = datetime(2026, 3, 14, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-03-14T15:00:00Z", WHEN),
        ("2026-03-14t15:00:00z", WHEN),
        ("2026-03-14T15:00:00+00:00", WHEN),
        ("2026-03-14T15:00:00-00:00", WHEN),
        ("2026-03-14T20:45:00+05:45", WHEN),
        ("2026-03-14T01:00:00-14:00", WHEN),
        ("2026-03-15T05:00:00+14:00", WHEN),
        ("2026-03-14T15:00:00.25Z", WHEN + timedelta(milliseconds=250)),
        ("2026-03-14T15:00:00.123456Z", WHEN + timedelta(microseconds=123_456)),
        ("2026-03-14T15:00:00.123456499Z", WHEN + timedelta(microseconds=123_456)),
        (1773500400, WHEN),
        (1773500400.25, WHEN + timedelta(milliseconds=250)),
        (1773500400000, WHEN),
        (1773500400250, WHEN + timedelta(milliseconds=250)),
        ("1773500400", WHEN),
        ("1773500400.25", WHEN + timedelta(milliseconds=250)),
        (" 1773500400250 ", WHEN + timedelta(milliseconds=250)),
        ("1.7735004e9", WHEN),
    ],
)
def test_a_time_is_taken_as_rfc_3339_or_as_unix_time(written: Any, meant: datetime) -> None:
    for fields in (meter(timestamp=written), meter(timestamp=written, voltage="230")):
        ts = taken(fields)[1]
        assert (ts, ts.tzinfo) == (meant, UTC)


@pytest.mark.parametrize(
    "written",
    [
        "2026-03-14T15:00:00",  # no offset: whose time would it be?
        "2026-03-14",
        "15:00:00Z",
        "2026-02-30T15:00:00Z",
        "2026-03-14T25:00:00Z",
        "2026-03-14T15:00:00+25:00",
        "14.03.2026 15:00",
        "now",
        "",
        " ",
        "\0",
        "2026-03-14T15:00:00Z\n",
        "NaN",
        "1e400",
        "-1e400",
        1e300,
        -1e300,
        1e17,
        True,
        False,
        [],
        {},
        ["2026-03-14T15:00:00Z"],
    ],
)
def test_what_is_no_time_is_a_bad_timestamp(written: Any) -> None:
    assert reason_for(meter(timestamp=written)) == "bad_timestamp"


def test_half_a_surrogate_pair_anywhere_is_refused_or_ignored() -> None:
    reasons = {key: reason_for(with_raw(key, rb'"\ud800"')) for key in ("timestamp", "meterId", "type", "voltage")}
    assert reasons == {"timestamp": "bad_timestamp", "meterId": "bad_id", "type": "wrong_type", "voltage": "wrong_type"}
    assert taken(with_raw("unknown", rb'"\ud800"'))[0] == "m-1"


@pytest.mark.parametrize("fields", [meter(), meter(timestamp=None), meter(voltage="230")])
def test_a_reading_without_a_time_gets_the_time_of_receipt(fields: bytes) -> None:
    _, ts, *_, received_at, _ = taken(fields)
    assert ts == received_at
    assert NOW <= ts < NOW + timedelta(milliseconds=1)


def test_readings_without_a_time_never_share_a_key_even_on_a_clock_that_stands_or_goes_back() -> None:
    times = iter([NOW, NOW, NOW - timedelta(hours=1), NOW, NOW + timedelta(seconds=1)])
    clock = ReceiptClock(lambda: next(times, NOW))
    receipts = (Receipt(RULES, clock) for _ in range(3))
    array = b"[%s]" % b",".join([meter()] * 100)
    rows = [row for each in receipts for message in (meter(), array) for row in decode(METER_TOPIC, message, each).rows]
    stamps = [row[1] for row in rows]
    assert len(stamps) == 303
    assert stamps == sorted(set(stamps))


LIMITS = [
    pytest.param(RULES, NOW + timedelta(seconds=300), "clock_ahead", MICROSECOND, id="clock ahead"),
    pytest.param(RULES, NOW - RETENTION, "too_old", -MICROSECOND, id="retention"),
    pytest.param(FOR_EVER, EARLIEST, "too_old", -MICROSECOND, id="year 2000"),
    pytest.param(
        Rules(timedelta(0), timedelta(days=36500)), EARLIEST, "too_old", -MICROSECOND, id="year 2000, long retention"
    ),
    pytest.param(Rules(timedelta(0), RETENTION), NOW, "clock_ahead", MICROSECOND, id="no patience"),
]


@pytest.mark.parametrize(("rules", "limit", "reason", "step"), LIMITS)
def test_a_time_is_believed_up_to_its_limit(rules: Rules, limit: datetime, reason: str, step: timedelta) -> None:
    for zone in (UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))):
        inside, outside = limit.astimezone(zone), (limit + step).astimezone(zone)
        assert taken(meter(timestamp=inside.isoformat()), rules=rules)[1] == limit
        assert reason_for(meter(timestamp=outside.isoformat()), rules=rules) == reason


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("0001-01-01T00:00:00+14:00", "too_old"),
        ("0001-01-01T00:00:00Z", "too_old"),
        ("9999-12-31T23:59:59-14:00", "clock_ahead"),
        ("9999-12-31T23:59:59.999999Z", "clock_ahead"),
        (0, "too_old"),
        (-1, "too_old"),
        ("1980-01-06T00:00:00Z", "too_old"),
        (99_999_999_999, "clock_ahead"),  # the last that is in seconds
        (100_000_000_000, "too_old"),  # the first that is in milliseconds: 1973
    ],
)
def test_times_at_the_ends_of_the_calendar_are_refused_and_nothing_overflows(written: Any, reason: str) -> None:
    for rules in (RULES, FOR_EVER):
        assert reason_for(meter(timestamp=written), rules=rules) == reason


def test_the_sentences_about_time_say_what_is_allowed() -> None:
    assert refused(meter(timestamp="2026-03-14T16:09:26.535897Z"))[1] == (
        "`timestamp` is 3600 s ahead; at most 300 s are allowed"
    )
    assert refused(meter(timestamp="1970-01-01T00:00:00Z"), rules=FOR_EVER)[1] == (
        "`timestamp` is 1970-01-01T00:00:00+00:00; the earliest that is kept is 2000-01-01T00:00:00+00:00"
    )


# JSON as it comes.


def test_unknown_fields_are_ignored() -> None:
    assert taken(meter(firmware="1.2", nested={"a": [1, None, {"b": "\0"}]}, Voltage=5, KWHCONSUMEDAC=7))[2:4] == (
        1.5,
        230.0,
    )


@pytest.mark.parametrize(
    ("message", "voltage"),
    [
        (b'{"voltage":1,"kwhConsumedAc":1,"voltage":2}', 2),
        (b'{"voltage":1,"kwhConsumedAc":1,"voltage":"2"}', 2),
        (b'{"voltage":"x","kwhConsumedAc":"1","voltage":2}', 2),
    ],
)
def test_of_a_key_that_is_there_twice_the_last_one_counts(message: bytes, voltage: float) -> None:
    assert taken(message)[3] == voltage


@pytest.mark.parametrize("before", [b"", b" \t\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf "])
@pytest.mark.parametrize("after", [b"", b" \t\r\n"])
def test_white_space_and_a_byte_order_mark_do_no_harm(before: bytes, after: bytes) -> None:
    element = meter(timestamp="2026-03-14T15:00:00Z")
    assert taken(before + element + after)[1:4] == (WHEN, 1.5, 230.0)
    assert taken(before + b"[ %s ]" % element + after)[1:] == (WHEN, 1.5, 230.0, NOW, element)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b" ",
        b"\0",
        b"{",
        b"{]",
        b"[",
        b'[{"voltage":1}',
        b'{"voltage":1,}',
        b"{'voltage':1}",
        b'{"voltage":1}{"voltage":1}',
        b'{"voltage":1} x',
        b'{"voltage":01,"kwhConsumedAc":1}',
        b'{"voltage":1.,"kwhConsumedAc":1}',
        b'{"unknown":"\n","voltage":1,"kwhConsumedAc":1}',
        b"voltage=230",
        b"<reading/>",
        b"\x0c[]",
        b"\xff\xfe{\0}\0",
    ],
)
def test_what_is_no_json_is_malformed(message: bytes) -> None:
    assert reason_for(message) == "malformed_json"


@pytest.mark.parametrize("message", [b"null", b"1", b"true", b'"text"', b'"{}"', b"-0.5"])
def test_json_that_is_no_object_has_the_wrong_type(message: bytes) -> None:
    assert reason_for(message) == "wrong_type"


@pytest.mark.parametrize("key", ["unknown", "meterId", "type", "timestamp", "voltage"])
@pytest.mark.parametrize("text", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"])
def test_invalid_utf8_is_malformed_wherever_it_is(key: str, text: bytes) -> None:
    assert reason_for(with_raw(key, b'"%s"' % text)) == "malformed_json"


def test_text_beyond_ascii_is_fine_in_what_is_ignored() -> None:
    assert taken('{"voltage":1,"kwhConsumedAc":2,"ort":"Zürich 🔋"}'.encode())[2:4] == (2, 1)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
def test_nesting_of_any_depth_is_ignored_or_refused(opening: bytes, closing: bytes) -> None:
    for depth in [*range(1, 40), *range(300, 1100, 7), 10_000, 100_000]:
        nested = opening * depth + b"1" + closing * depth
        for key in ("unknown", "voltage", "timestamp", "meterId"):
            decoded = decode(METER_TOPIC, with_raw(key, nested), receipt())
            reasons = {rejection.reason for rejection in decoded.rejections}
            assert reasons <= {"malformed_json", "wrong_type", "bad_timestamp"}
            assert len(decoded.rows) + len(decoded.rejections) == 1
    assert reason_for(with_raw("unknown", b"[" * 100_000 + b"]" * 100_000)) == "malformed_json"
    assert reason_for(b"[" * 100_000) == "malformed_json"


def test_nul_is_refused_where_it_would_reach_the_table_and_ignored_elsewhere() -> None:
    assert reason_for(meter(meterId="m-1\0")) == "bad_id"
    assert taken(meter(unknown="\0"))[0] == "m-1"


# Arrays and sizes.


def test_in_an_array_only_the_bad_elements_are_rejected_and_each_keeps_its_own_bytes() -> None:
    good = [meter(timestamp=f"2026-03-14T15:00:{n:02}Z") for n in range(6)]
    bad = {
        b'{ "voltage" : 1e999 , "kwhConsumedAc":1}': "out_of_range",
        b'{"voltage":1}': "missing_field",
        b'{"voltage":true,"kwhConsumedAc":1}': "wrong_type",
        b"null": "wrong_type",
        b"[1, 2]": "wrong_type",
        meter(meterId="m-2"): "id_mismatch",
        meter(meterId=""): "bad_id",
        meter(timestamp="yesterday"): "bad_timestamp",
        meter(timestamp="2030-01-01T00:00:00Z"): "clock_ahead",
        meter(timestamp="1970-01-01T00:00:00Z"): "too_old",
        b'{"unknown":"\\u00e4","voltage":"","kwhConsumedAc":1}': "wrong_type",
    }
    elements = [element for n, element in enumerate(bad) for element in (good[n % 6], element)]
    decoded = decode(METER_TOPIC, b" [\n" + b" ,\t".join(elements) + b"\r\n] ", receipt())
    assert [row[-1] for row in decoded.rows] == [good[n % 6] for n in range(len(bad))]
    assert [(rejection.payload, rejection.reason) for rejection in decoded.rejections] == list(bad.items())
    assert decoded.kind is METER


@pytest.mark.parametrize("element", [b"NaN", with_raw("voltage", b"NaN"), with_raw("voltage", b"-Infinity")])
def test_nan_spoils_its_own_element_only(element: bytes) -> None:
    for elements in ([element, meter()], [meter(), element]):
        decoded = decode(METER_TOPIC, b" [\n" + b" , ".join(elements) + b" ] ", receipt())
        assert [row[-1] for row in decoded.rows] == [meter()]
        assert [(rejection.reason, rejection.payload) for rejection in decoded.rejections] == [
            ("malformed_json", element)
        ]


@pytest.mark.parametrize(
    "message", [b"[NaN", b"[NaN,]", b"[NaN] x", b"[NaN 1]", b"[,NaN]", b"[" * 100_000, b"[NaN," * 100_000]
)
def test_an_array_with_nan_that_is_broken_besides_is_one_rejection(message: bytes) -> None:
    assert reason_for(message) == "malformed_json"


@pytest.mark.parametrize("element", [meter()[:-1], b"", with_raw("type", b'"\xff"')])
def test_an_array_that_is_no_json_is_one_rejection(element: bytes) -> None:
    assert reason_for(b"[%s,%s" % (meter(), element)) == "malformed_json"
    assert reason_for(b"[%s,%s]" % (element, meter())) == "malformed_json"


@pytest.mark.parametrize("message", [b"[]", b" [ ] "])
def test_an_empty_array_has_nothing_of_what_is_expected(message: bytes) -> None:
    assert refused(message) == ("missing_field", "the array is empty")


def test_a_payload_may_have_the_greatest_size_and_not_a_byte_more() -> None:
    greatest = meter().ljust(PAYLOAD_BYTES_MAX)
    assert taken(greatest)[-1] == greatest
    reason, detail = refused(greatest + b" ")
    assert reason == "too_large"
    assert detail == "the payload has 1048577 bytes; at most 1048576 are allowed"


def test_an_array_may_have_the_greatest_number_of_elements_and_not_one_more() -> None:
    decoded = decode(METER_TOPIC, b"[%s]" % b",".join([b"0"] * ITEMS_MAX), receipt())
    assert len(decoded.rejections) == ITEMS_MAX
    reason, detail = refused(b"[%s]" % b",".join([b"0"] * (ITEMS_MAX + 1)))
    assert reason == "too_large"
    assert detail == "the array has 20001 elements; at most 20000 are allowed"


def test_every_reason_that_decoding_can_give_is_reached() -> None:
    found = {
        reason_for(b"{"),
        reason_for(b"1"),
        reason_for(b"{}"),
        reason_for(meter(voltage=-1)),
        reason_for(meter(timestamp="")),
        reason_for(meter(timestamp=4e9)),
        reason_for(meter(timestamp=0)),
        reason_for(meter(meterId="")),
        reason_for(meter(meterId="m-2")),
        reason_for(meter(), "elsewhere"),
        reason_for(b" " * (PAYLOAD_BYTES_MAX + 1)),
    }
    assert found == set(REASONS) - {"conflict", "refused_by_database"}


@pytest.mark.parametrize("message", [meter(meterId="x" * 5000), meter(voltage="x" * 5000), meter(type="ü\0" * 5000)])
def test_a_sentence_is_short_and_in_ascii_whatever_was_sent(message: bytes) -> None:
    detail = refused(message)[1]
    assert len(detail) < 200
    assert detail.isascii()
    assert detail.isprintable()


# What holds for any input.

topics = st.one_of(
    st.sampled_from([METER_TOPIC, VEHICLE_TOPIC]),
    st.builds("{}/{}/reading".format, st.sampled_from(["meters", "vehicles", "x"]), st.text(max_size=70)),
    st.text(max_size=30),
)
numbers = st.one_of(
    st.integers(min_value=-1, max_value=1001),
    st.integers(),
    st.floats(min_value=-61, max_value=1001),
    st.floats(allow_nan=False, allow_infinity=False),
)
times = st.one_of(
    st.datetimes(
        min_value=datetime(2024, 1, 1),  # noqa: DTZ001 - Hypothesis wants it so; the zone is the next argument
        max_value=datetime(2027, 1, 1),  # noqa: DTZ001 - likewise
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-9, minutes=-30))]),
    ).map(datetime.isoformat),
    st.floats(min_value=1.7e9, max_value=1.8e9),
    st.integers(min_value=1_700_000_000_000, max_value=1_800_000_000_000),
    numbers,
    st.none(),
)
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=10)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
known = {key: numbers for form in FORMS.values() for key in form.ranges}
optional = {
    "timestamp": times,
    "meterId": st.sampled_from(["m-1", None, "m-2"]),
    "vehicleId": st.sampled_from(["v-1", None, "v-2"]),
    "type": st.sampled_from(["meter", "VEHICLE", None]),
    "other": junk,
}
objects = st.fixed_dictionaries(known, optional=optional)
broken_objects = st.dictionaries(st.sampled_from([*known, *optional]), st.one_of(junk, times), max_size=8)
payloads = st.one_of(
    st.binary(max_size=200),
    st.one_of(objects, broken_objects, junk, st.lists(st.one_of(objects, broken_objects, junk), max_size=4)).map(
        lambda value: json.dumps(value).encode()
    ),
)


def form_of(topic: str) -> Form:
    return FORMS[topic.split("/")[0]]


def check_rows(decoded: Decoded, topic: str, at: Receipt) -> None:
    for device, ts, *values, received_at, item in decoded.rows:
        assert topic == f"{topic.split('/')[0]}/{device}/reading"
        assert ts.tzinfo is UTC
        assert at.earliest <= ts <= at.latest
        assert at.at <= received_at <= at.at + timedelta(seconds=1)
        for value, (least, greatest) in zip(values, form_of(topic).ranges.values(), strict=True):
            assert type(value) is float
            assert least <= value <= greatest
        assert isinstance(msgspec.json.decode(item.removeprefix(b"\xef\xbb\xbf")), dict)


@settings(max_examples=600, deadline=None)
@given(topic=topics, message=payloads)
@example(topic=METER_TOPIC, message=rb'{"voltage":1,"kwhConsumedAc":1,"timestamp":"\ud800"}')
@example(topic=METER_TOPIC, message=b"\xef\xbb\xbf[]")
def test_whatever_comes_is_accounted_for_and_what_is_taken_is_sound(topic: str, message: bytes) -> None:
    at = receipt()
    decoded = decode(topic, message, at)
    assert len(decoded.rows) + len(decoded.rejections) >= 1
    assert {rejection.reason for rejection in decoded.rejections} <= set(REASONS)
    check_rows(decoded, topic, at)


def outcome(topic: str, message: bytes) -> Iterable[Any]:
    """What a message comes to, but for its bytes: values of rows, and reasons."""
    decoded = decode(topic, message, receipt())
    return [row[:-1] for row in decoded.rows], [rejection.reason for rejection in decoded.rejections]


@settings(max_examples=400, deadline=None)
@given(topic=st.sampled_from([METER_TOPIC, VEHICLE_TOPIC]), fields=objects)
def test_the_strict_and_the_lenient_way_agree(topic: str, fields: dict[str, Any]) -> None:
    plain = json.dumps(fields).encode()
    as_text = {key: repr(value) if key in known else value for key, value in fields.items()}
    if type(fields.get("timestamp")) in (int, float):
        as_text["timestamp"] = repr(fields["timestamp"])
    in_other_ways = [b"[%s]" % plain, b"\xef\xbb\xbf" + plain, json.dumps(as_text).encode()]
    assert [outcome(topic, message) for message in in_other_ways] == [outcome(topic, plain)] * 3
