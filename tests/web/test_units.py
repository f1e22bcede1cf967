"""Numbers and times as people read them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from api.web import units

AT = datetime(2026, 5, 2, 21, 30, 15, 250_000, tzinfo=timezone(timedelta(hours=5, minutes=30)))
"""16:00:15.25 in UTC."""
NBSP, THIN = "\u00a0", "\u202f"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.042, "0.042"),
        (0.00001, "0.000"),
        (1, "1.00"),
        (4.214, "4.21"),
        (42.14, "42.1"),
        (421.4, "421"),
        (4210.4, f"4{THIN}210"),
        (1234567, f"1{THIN}234{THIN}567"),
        (-4.214, "-4.21"),
        (None, "–"),
    ],
)
def test_about_three_digits_mean_something(value: float | None, text: str) -> None:
    assert units.significant(value) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.kwh(4.214), f"4.21{NBSP}kWh"),
        (units.percent(0.9236), f"92.4{NBSP}%"),
        (units.celsius(-3.04), f"-3.0{NBSP}°C"),
        (units.volt(230.44), f"230.4{NBSP}V"),
        (units.number(12345.678, 1), f"12{THIN}345.7"),
    ],
)
def test_a_figure_does_not_part_from_its_unit(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    "unit", [units.number, units.kwh, units.percent, units.celsius, units.volt, units.duration, units.moment]
)
def test_what_is_not_known_is_a_dash_without_a_unit(unit: object) -> None:
    assert callable(unit)
    assert unit(None) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (86399, "23 h"),
        (86400, "1 d"),
        (1e7, "115 d"),
    ],
)
def test_a_duration_is_in_the_largest_unit_that_it_has_one_of(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text.replace(" ", NBSP)


def test_a_moment_is_in_utc_for_whom_no_script_runs() -> None:
    expected = (
        '<time datetime="2026-05-02T16:00:15.250000Z" title="2026-05-02 16:00:15 UTC">2026-05-02 16:00 UTC</time>'
    )
    assert units.moment(AT) == expected


def test_an_age_is_counted_from_now_and_keeps_its_moment() -> None:
    text = units.age(AT, datetime(2026, 5, 2, 16, 5, 15, tzinfo=UTC))
    assert text.startswith('<time datetime="2026-05-02T16:00:15.250000Z" title="2026-05-02 16:00:15 UTC" data-age>')
    assert text.endswith(f">4{NBSP}min</time>")
    assert units.age(None, AT) == "–"


@pytest.mark.parametrize(
    ("value", "noun", "text"), [(1, "glitch", "1 glitch"), (2, "glitch", "2 glitches"), (0, "dip", "0 dips")]
)
def test_a_count_has_its_noun_in_the_right_number(value: int, noun: str, text: str) -> None:
    assert units.count(value, noun) == text
