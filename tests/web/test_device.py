"""The pages of a vehicle and of a meter, and what their charts are drawn from."""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from html import unescape
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from api.app import build_app
from sql.hours import hour_floor
from tests.api.conftest import NOW, check_problem, client_of, meter, settings, vehicle

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
BEGIN = hour_floor(NOW) - 6 * HOUR
SILENT = range(120, 180)
"""The minutes of the third of four hours, in which nothing came."""


def at(hours: float) -> str:
    return (BEGIN + hours * HOUR).isoformat().replace("+00:00", "Z")


def window(start: float, end: float) -> str:
    return f"from={at(start)}&to={at(end)}"


def minutes(
    kwh: Callable[[int], float], make: Callable[..., dict[str, Any]], **fields: Any
) -> Iterator[dict[str, Any]]:
    for n in range(240):
        if n not in SILENT:
            yield make(BEGIN + n * MINUTE, **fields, **{"kwhConsumedAc" if make is meter else "kwhDeliveredDc": kwh(n)})


def send(client: TestClient, readings: Iterable[dict[str, Any]]) -> None:
    assert client.post("/v1/ingest", json=list(readings)).status_code == 201


def link(client: TestClient, vehicle_id: str, meter_id: str, start: float, end: float | None = None) -> None:
    times = {"validFrom": at(start)} | ({"validTo": at(end)} if end else {})
    assert client.post("/v1/links", json={"vehicleId": vehicle_id, "meterId": meter_id, **times}).status_code == 201


@pytest.fixture(scope="module")
def site(shared_url: str) -> Iterator[TestClient]:
    """A sidecar with a leaky vehicle, one with a register, one that is not linked and one that sent nothing."""
    with client_of(build_app(settings(shared_url, ANALYTICS_CACHE_TTL_S="0"))) as client:
        send(client, minutes(lambda n: 0.18, meter, meterId="m-leaky"))
        send(client, minutes(lambda n: 0.117, vehicle, vehicleId="v-leaky"))
        link(client, "v-leaky", "m-leaky", -1)
        client.put("/v1/devices/vehicle/v-register", json={"energyMode": "register"})
        send(client, minutes(lambda n: 0.12, meter, meterId="m-register"))
        send(client, minutes(lambda n: 1000 + n / 10, vehicle, vehicleId="v-register"))
        link(client, "v-register", "m-register", -1)
        send(client, minutes(lambda n: 0.1, vehicle, vehicleId="v-alone"))
        link(client, "v-silent", "m-silent", -1)
        send(client, minutes(lambda n: 0.1, vehicle, vehicleId="v-both"))
        send(client, minutes(lambda n: 0.125, meter, meterId="m-first"))
        send(client, minutes(lambda n: 0.2, meter, meterId="m-second"))
        link(client, "v-both", "m-first", 0, 1)
        link(client, "v-both", "m-second", 1, 2)
        yield client


def text_of(client: TestClient, address: str, status: int = 200) -> str:
    """What a page says, without its tags."""
    answer = client.get(address)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", answer.text))).replace("\xa0", " ")


def data_of(client: TestClient, address: str) -> dict[str, Any]:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def performance_of(client: TestClient, vehicle_id: str, start: float, end: float) -> dict[str, Any]:
    return data_of(client, f"/v1/analytics/performance/{vehicle_id}?{window(start, end)}")


def total(column: list[float | None]) -> float:
    return sum(value or 0 for value in column)


def of_hour(data: dict[str, Any], column: str, hour: int) -> list[float | None]:
    """The values of a column in an hour after the beginning."""
    begins = (BEGIN + hour * HOUR).timestamp()
    return [
        value
        for time, value in zip(data["times"], data[column], strict=True)
        if begins <= time < begins + HOUR.total_seconds()
    ]


# What the pages say.


def test_a_leaky_vehicle_has_its_loss_its_verdict_and_the_reason(site: TestClient) -> None:
    page = text_of(site, f"/vehicles/v-leaky?{window(0, 4)}")
    found = performance_of(site, "v-leaky", 0, 4)
    assert found["status"] == "low_efficiency"
    assert "11.3 kWh 35.0 % of what its meter counted" in page
    assert "Verdict low efficiency" in page
    assert "Of 32.4 kWh AC, 21.1 kWh DC arrived: 65.0 %, less than 85.0 %." in page
    assert "Covered by readings 75.4 %" in page
    assert "180 readings of the vehicle cover 75.4 % of the window, 180 of its meter" in page
    assert "State of charge 80.0 %" in page
    assert "Energy mode interval" in page
    assert "Meter now m-leaky" in page


@pytest.mark.parametrize(
    ("dc_kwh", "said"),
    [
        (0.117, "Of 32.4 kWh AC, 21.1 kWh DC arrived: 65.0 %, less than 85.0 %."),
        (0.15299, "Of 32.4 kWh AC, 27.5 kWh DC arrived: 85.0 %, just less than 85.0 %."),
        (0.1647, "Of 32.4 kWh AC, 29.6 kWh DC arrived: 91.5 %, at least 85.0 %."),
        (0.2, "Of 32.4 kWh AC, 36.0 kWh DC arrived: 111.1 %, more than 100.0 %: a meter missed energy"),
    ],
)
def test_a_verdict_is_a_sentence_in_percent(client: TestClient, dc_kwh: float, said: str) -> None:
    send(client, minutes(lambda n: 0.18, meter, meterId="m-1"))
    send(client, minutes(lambda n: dc_kwh, vehicle, vehicleId="v-1"))
    link(client, "v-1", "m-1", -1)
    assert said in text_of(client, f"/vehicles/v-1?{window(0, 4)}")


def test_where_there_is_no_verdict_a_sentence_says_why(client: TestClient) -> None:
    send(client, [vehicle(BEGIN + MINUTE, vehicleId="v-1", kwhDeliveredDc=0.1)])
    page = f"/vehicles/v-1?{window(0, 1)}"
    assert "The battery took 0.100 kWh DC meanwhile." in text_of(client, page)
    assert "1 reading of the vehicle covers" in text_of(client, page)
    link(client, "v-1", "m-1", -1)
    assert "Its meters counted no AC energy while linked; 0.100 kWh DC came meanwhile." in text_of(client, page)
    send(client, [meter(BEGIN + MINUTE, meterId="m-1", kwhConsumedAc=0.2)])
    assert "0.200 kWh AC is less than the 1.00 kWh that a verdict takes." in text_of(client, page)
    send(client, [meter(BEGIN + 2 * MINUTE, meterId="m-1", kwhConsumedAc=2)])
    assert re.search(r"Readings cover \d\.\d % of the window, less than the 50\.0 % that", text_of(client, page))


def test_a_vehicle_leads_to_its_meter_and_to_its_readings(site: TestClient) -> None:
    page = site.get(f"/vehicles/v-leaky?{window(0, 4)}").text
    addresses = [unescape(address) for address in re.findall(r'href="([^"]+)"', page)]
    assert "/meters/m-leaky" in addresses
    assert f"/meters/m-leaky?{window(0, 4)}" in addresses
    csv = f"/v1/vehicles/v-leaky/readings?format=csv&{window(0, 4)}"
    assert csv in addresses
    assert len(site.get(csv).text.splitlines()) == 181


def test_a_meter_has_its_energy_who_charged_there_and_how_much_came(site: TestClient) -> None:
    page = text_of(site, f"/meters/m-first?{window(0, 4)}")
    assert "22.5 kWh AC, whoever was linked" in page
    assert "Readings that came 75.0 % 180 of 240 expected" in page
    assert "A reading each 1 min Covered by readings 75.4 %" in page
    assert "59 readings. In all 1." in page or "60 readings. In all 1." in page
    assert re.search(r"v-both \S+ \S+ UTC \S+ \S+ UTC 7\.50 kWh", page)
    assert "Vehicle now none" in page


def test_each_pairing_of_the_window_has_its_bar_and_its_row(site: TestClient) -> None:
    answer = site.get(f"/vehicles/v-both?{window(0, 4)}").text
    bars = re.findall(r'<rect class="(?:odd|even)" x="([\d.]+)" width="([\d.]+)" height="20"><title>([^<]+)', answer)
    assert bars == [("0.00", "250.00", "m-first"), ("250.00", "250.00", "m-second")]
    page = text_of(site, f"/vehicles/v-both?{window(0, 4)}")
    assert re.search(r"m-first \S+ \S+ UTC \S+ \S+ UTC 7\.50 kWh m-second \S+ \S+ UTC \S+ \S+ UTC 12\.0 kWh", page)
    assert "Another 6.00 kWh DC came while it was linked with no meter." in page


def test_an_unlinked_vehicle_is_to_be_paired(site: TestClient) -> None:
    page = text_of(site, f"/vehicles/v-alone?{window(0, 4)}")
    assert "It was linked with no meter, so nobody can tell what was lost. Pair it" in page
    assert "Verdict unlinked" in page


def test_an_hour_without_readings_says_when_the_last_one_was(site: TestClient) -> None:
    for kind in ("vehicle", "meter"):
        answer = site.get(f"/{kind}s/{kind[0]}-leaky?{window(2, 3)}").text
        assert "No readings in this window; the last one was" in answer
        assert "data-chart" not in answer
        (last,) = re.findall(r'href="(\?span=24h[^"]+)">Show the 24 hours up to it', answer)
        assert "data-chart" in site.get(f"/{kind}s/{kind[0]}-leaky{unescape(last)}").text


def test_a_device_that_is_linked_and_sent_nothing_is_told_how(site: TestClient) -> None:
    for kind, other in (("vehicle", "m-silent"), ("meter", "v-silent")):
        page = text_of(site, f"/{kind}s/{kind[0]}-silent")
        assert "It has not sent a reading yet." in page
        assert f"{kind}s/{kind[0]}-silent/reading" in page
        assert f"now {other}" in page


@pytest.mark.parametrize("made", ["linked", "configured"])
def test_a_device_that_sent_nothing_has_a_page_and_empty_charts(site: TestClient, made: str) -> None:
    link(site, "v-linked", "m-linked", -1)
    for kind in ("vehicle", "meter"):
        site.put(f"/v1/devices/{kind}/{kind[0]}-configured", json={"energyMode": "register"})
        address = f"/{kind}s/{kind[0]}-{made}"
        assert "It has not sent a reading yet." in text_of(site, address)
        data = data_of(site, f"{address}/data?{window(0, 4)}")
        columns = [column for name, column in data.items() if isinstance(column, list) and "imes" not in name]
        assert {value for column in columns for value in column} == {None}


def test_nobody_knows_a_device_that_never_came(site: TestClient) -> None:
    for kind in ("vehicle", "meter"):
        page = text_of(site, f"/{kind}s/nobody", 404)
        assert f"Nobody knows this {kind}" in page
        assert f"{kind}s/nobody/reading" in page
        check_problem(site.get(f"/{kind}s/nobody/data"), 404)


@pytest.mark.parametrize("name", ["<script>alert(1)", "{{ 7 * 7 }}", "ü", "' OR 1=1", "x" * 5000, "\0"])
def test_a_strange_path_is_a_page_too(site: TestClient, name: str) -> None:
    path = quote(name, safe="")
    answer = site.get(f"/vehicles/{path}")
    assert answer.status_code == 404
    assert "<script>alert" not in answer.text
    assert "Nobody knows this vehicle" in answer.text
    check_problem(site.get(f"/vehicles/{path}/data"), 422)


# Windows.


def test_a_window_without_a_word_has_24_hours(site: TestClient) -> None:
    answer = site.get("/vehicles/v-leaky").text
    assert '<a href="?span=24h" aria-current="true">24 hours</a>' in answer
    asked = unescape(re.findall(r'data-from="([^"]+)"', answer)[0])
    data = data_of(site, asked)
    assert data["to"] - data["from"] == 24 * 3600
    assert data_of(site, "/vehicles/v-leaky/data?from=&to=")["stepS"] == 300


@pytest.mark.parametrize(("span", "days", "step_s"), [("24h", 1, 300), ("7d", 7, 3600), ("30d", 30, 3600)])
def test_windows_of_some_lengths_are_a_link_away(site: TestClient, span: str, days: int, step_s: int) -> None:
    for kind in ("vehicle", "meter"):
        assert f'<a href="?span={span}" aria-current="true">' in site.get(f"/{kind}s/{kind[0]}-leaky?span={span}").text
        data = data_of(site, f"/{kind}s/{kind[0]}-leaky/data?span={span}")
        assert data["to"] - data["from"] == days * 86400
        assert data["stepS"] == step_s


def test_the_form_is_in_utc(site: TestClient) -> None:
    form = f"from={BEGIN:%Y-%m-%dT%H:%M}&to={BEGIN + HOUR:%Y-%m-%dT%H:%M:%S}"
    assert data_of(site, f"/vehicles/v-leaky/data?{form}") == data_of(site, f"/vehicles/v-leaky/data?{window(0, 1)}")
    page = site.get(f"/vehicles/v-leaky?{form}").text
    assert f'name="from" step="1" value="{BEGIN:%Y-%m-%dT%H:%M:%S}"' in page


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (window(2, 1), "which is not before `to`"),
        ("from=yesterday", "`from` is 'yesterday'; allowed: RFC 3339"),
        ("from=2024-01-01T00:00&to=2025-01-02T00:00", "allowed: 366 days"),
        ("span=1y", "`span` is '1y'; allowed: 24h, 7d or 30d"),
        (f"span=7d&{window(1, 2)}", "`span` and `from` both say where the window begins"),
        ("until=now", "`until` is not known here; allowed: from, to, span"),
        ("from=2024-13-01T00:00", "`from` is '2024-13-01T00:00:00Z'; allowed: RFC 3339"),
    ],
    ids=["backwards", "no time", "too long", "no span", "span and beginning", "not known", "no month"],
)
def test_a_window_that_cannot_be_is_said_beside_the_form(site: TestClient, query: str, sentence: str) -> None:
    for kind in ("vehicle", "meter"):
        page = text_of(site, f"/{kind}s/{kind[0]}-leaky?{query}", 422)
        assert sentence in page
        assert f"{kind[0]}-leaky" in page
        assert sentence in check_problem(site.get(f"/{kind}s/{kind[0]}-leaky/data?{query}"), 422)["detail"]


@pytest.mark.parametrize(
    ("query", "shown", "asked"),
    [
        (
            "from=2026-03-14T15:00:00Z&to=2026-03-13T17:30:00.5%2B01:00",
            ("2026-03-14T15:00:00", "2026-03-13T16:30:00"),
            "Asked for: from 2026-03-14T15:00:00Z to 2026-03-13T17:30:00.5+01:00",
        ),
        ("from=2026-03-14&to=<b>now", ("2026-03-14T00:00:00", ""), "Asked for: from 2026-03-14 to <b>now"),
        ("from=0001-01-01T00:00:00%2B14:00", ("", ""), "Asked for: from 0001-01-01T00:00:00+14:00"),
        ("to=2026-03-14T15:00&from=", ("", "2026-03-14T15:00:00"), "Asked for: to 2026-03-14T15:00"),
    ],
)
def test_the_times_that_were_given_stand_beside_what_is_wrong_with_them(
    site: TestClient, query: str, shown: tuple[str, str], asked: str
) -> None:
    for kind in ("vehicle", "meter"):
        page = site.get(f"/{kind}s/{kind[0]}-leaky?{query}&odd=1").text
        assert tuple(re.findall(r'name="(?:from|to)" step="1" value="([^"]*)"', page)) == shown
        alerts = re.findall(r'role="alert">([^<]*)<', page)
        assert [unescape(alert).rpartition(". ")[2] for alert in alerts] == [asked]


# What the charts are drawn from.


def test_silence_is_null_and_no_zero(site: TestClient) -> None:
    of_vehicle = data_of(site, f"/vehicles/v-leaky/data?{window(0, 4)}")
    for column in ("acKwh", "dcKwh", "acKw", "dcKw", "soc", "batteryTemp", "dcUnlinkedKw"):
        assert of_hour(of_vehicle, column, 2) == [None] * 12
    assert of_vehicle["efficiency"] == [0.65, 0.65, None, 0.65]
    assert of_vehicle["efficiencyStepS"] == 3600
    assert of_hour(of_vehicle, "acKw", 1) == [10.8] * 12
    assert of_hour(of_vehicle, "dcKw", 1) == [7.02] * 12
    assert of_hour(of_vehicle, "soc", 3) == [80] * 12
    assert of_hour(of_vehicle, "dcUnlinkedKw", 1) == [None] * 12
    of_meter = data_of(site, f"/meters/m-leaky/data?{window(0, 4)}")
    for column in ("acKwh", "acKw", "voltage"):
        assert of_hour(of_meter, column, 2) == [None] * 12
    assert of_hour(of_meter, "voltage", 0) == [230] * 12
    assert of_meter["energyKwh"] == [10.8, 10.8, None, 10.8]


@pytest.mark.parametrize("name", ["leaky", "register", "both"])
@pytest.mark.parametrize("hours", [(0, 4), (0.51, 3.77), (-30, 4), (-1000, 5)])
def test_the_steps_add_up_to_the_performance(site: TestClient, name: str, hours: tuple[float, float]) -> None:
    data = data_of(site, f"/vehicles/v-{name}/data?{window(*hours)}")
    whole = performance_of(site, f"v-{name}", *hours)
    assert total(data["acKwh"]) == pytest.approx(whole["acKwh"], abs=1e-4)
    assert total(data["dcKwh"]) == pytest.approx(whole["dcKwh"], abs=1e-4)
    assert total(data["dcUnlinkedKwh"]) == pytest.approx(whole["dcKwhUnlinked"], abs=1e-4)


@pytest.mark.parametrize(("start", "bar_s"), [(0, 3600), (-6 * 24, 3600), (-20 * 24, 86400), (-100 * 24, 86400)])
def test_bars_add_up_to_the_steps(site: TestClient, start: float, bar_s: int) -> None:
    data = data_of(site, f"/meters/m-first/data?{window(start, 4)}")
    assert data["energyStepS"] == bar_s
    assert all(time % bar_s == 0 for time in data["energyTimes"])
    assert total(data["energyKwh"]) == pytest.approx(total(data["acKwh"])) == pytest.approx(22.5)


def test_a_register_behind_a_silence_has_energy_and_no_power(site: TestClient) -> None:
    data = data_of(site, f"/vehicles/v-register/data?{window(0, 4)}")
    back = data["times"].index(int((BEGIN + 3 * HOUR).timestamp()))
    assert data["dcKwh"][back] == pytest.approx(6.5)
    assert data["dcKw"][back] is None
    assert data["dcKw"][back + 1] == pytest.approx(6)
    assert data["acKw"][back] == pytest.approx(7.2)


def test_a_register_behind_a_silence_has_no_efficiency(site: TestClient) -> None:
    data = data_of(site, f"/vehicles/v-register/data?{window(0, 4)}")
    assert data["efficiency"] == [None, pytest.approx(6 / 7.2, abs=1e-3), None, None]
    assert data_of(site, f"/vehicles/v-leaky/data?{window(0, 4)}")["efficiency"] == [0.65, 0.65, None, 0.65]


def test_the_first_step_of_a_register_may_end_a_silence(site: TestClient) -> None:
    data = data_of(site, f"/vehicles/v-register/data?{window(3, 4)}")
    assert data["dcKwh"][0] == pytest.approx(6.5)
    assert data["dcKw"][:2] == [None, pytest.approx(6)]


def test_power_is_that_of_the_time_that_readings_cover(site: TestClient) -> None:
    data = data_of(site, f"/vehicles/v-leaky/data?{window(-100 * 24, 4)}")
    assert data["stepS"] == 86400
    day = data_of(site, f"/vehicles/v-leaky/data?{window(-28, 4)}")
    known = [kw for kw in day["acKw"] if kw is not None]
    assert known
    assert known == pytest.approx([10.8] * len(known), abs=0.1)
    assert day["stepS"] == 3600


def test_a_step_that_the_window_cuts_has_energy_and_no_power(site: TestClient) -> None:
    data = data_of(site, f"/vehicles/v-leaky/data?{window(0.95, 1.55)}")
    assert data["acKwh"][0] == pytest.approx(0.54)
    assert data["acKw"][0] is data["acKw"][-1] is None
    assert set(data["acKw"][1:-1]) == {10.8}


def test_an_unlinked_vehicle_has_power_of_its_own(site: TestClient) -> None:
    data = data_of(site, f"/vehicles/v-alone/data?{window(0, 4)}")
    for column in ("acKwh", "acKw", "dcKwh", "dcKw", "efficiency"):
        assert set(data[column]) == {None}
    assert of_hour(data, "dcUnlinkedKw", 0) == [6] * 12
    assert total(data["dcUnlinkedKwh"]) == pytest.approx(performance_of(site, "v-alone", 0, 4)["dcKwhUnlinked"])


def test_a_column_is_as_long_as_its_times(site: TestClient) -> None:
    for address in ("/vehicles/v-both", "/vehicles/v-silent", "/meters/m-first"):
        data = data_of(site, f"{address}/data?{window(-10, 5)}")
        columns = {name: len(column) for name, column in data.items() if isinstance(column, list)}
        for prefix in ("efficiency", "energy"):
            of_own = {length for name, length in columns.items() if name.startswith(prefix)}
            assert of_own <= {columns.get(f"{prefix}Times")}
            columns = {name: length for name, length in columns.items() if not name.startswith(prefix)}
        assert set(columns.values()) == {15 * 12}


def test_data_are_compressed_for_those_who_can_read_that(site: TestClient) -> None:
    plain = site.get("/meters/m-first/data?span=30d", headers={"Accept-Encoding": "identity"})
    small = site.get("/meters/m-first/data?span=30d", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert small.headers["content-encoding"] == "gzip"
    assert int(small.headers["content-length"]) < len(plain.content) / 3
    assert small.json().keys() == plain.json().keys()


# Who may see it.


def test_with_tokens_one_signs_in_and_the_file_takes_a_token(
    site: TestClient, shared_url: str, tokens: Callable[[], tuple[str, dict[str, str]]]
) -> None:
    path, made = tokens()
    with client_of(build_app(settings(shared_url, API_TOKENS_FILE=path))) as client:
        answer = client.get("/vehicles/v-leaky?span=7d", follow_redirects=False)
        assert answer.headers["location"] == "/sign-in?next=/vehicles/v-leaky%3Fspan%3D7d"
        check_problem(client.get("/vehicles/v-leaky/data"), 401)
        (form_key,) = re.findall(r'name="form_key" value="([^"]+)"', client.get("/sign-in").text)
        client.post("/sign-in", data={"form_key": form_key, "token": made["read"]})
        page = client.get("/vehicles/v-leaky").text
        assert "v-leaky" in page
        assert "format=csv" not in page
        assert data_of(client, "/vehicles/v-leaky/data")["stepS"] == 300
