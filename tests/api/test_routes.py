"""Links, devices, live state, history and analytics over HTTP, and what they refuse."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from starlette.testclient import TestClient

from api import database, export
from api.analytics import OPERATIONS
from api.app import build_app
from api.database import LONG_MAX, open_database
from api.errors import ProblemError
from sql.devices import CHUNK_READINGS, MeterHistory
from tests.api.conftest import MINUTE, NOW, bearer, check_problem, client_of, meter, settings, vehicle

HOUR = 60 * MINUTE


def at(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def send(client: TestClient, readings: list[dict[str, Any]]) -> None:
    assert client.post("/v1/ingest", json=readings).status_code == 201


def pair(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/links", json={"vehicleId": "v-1", "meterId": "m-1", **body})


# Links.


def test_pairing_again_elsewhere_ends_what_was_open_and_says_so(client: TestClient) -> None:
    first = pair(client, validFrom=at(NOW - 2 * HOUR))
    assert first.status_code == 201
    assert first.headers["location"] == "/v1/links/v-1"
    assert first.json()["link"] == {
        "vehicleId": "v-1", "meterId": "m-1", "validFrom": at(NOW - 2 * HOUR), "validTo": None,
    }  # fmt: skip
    assert pair(client, validFrom=at(NOW - HOUR)).json() == first.json()
    second = pair(client, meterId="m-2", validFrom=at(NOW - HOUR)).json()
    assert second["ended"] == [{**first.json()["link"], "validTo": at(NOW - HOUR)}]
    assert client.get("/v1/links/v-1").json() == second["link"]
    assert client.get("/v1/links").json() == {"items": [second["ended"][0], second["link"]], "next": None}


def test_an_overlap_in_the_past_is_409_and_names_the_link(client: TestClient) -> None:
    link = pair(client, validFrom=at(NOW - 4 * HOUR), validTo=at(NOW - 2 * HOUR)).json()["link"]
    problem = check_problem(pair(client, meterId="m-2", validFrom=at(NOW - 3 * HOUR), validTo=at(NOW - HOUR)), 409)
    assert problem["link"] == link


@pytest.mark.parametrize(
    ("since", "until", "name"),
    [
        (at(NOW), at(NOW - HOUR), "validTo"),
        (None, at(NOW - HOUR), "validTo"),
        (at(NOW - HOUR), at(NOW + 48 * HOUR), "validTo"),
        (at(NOW + 48 * HOUR), None, "validFrom"),
        (at(NOW + 48 * HOUR), at(NOW + 49 * HOUR), "validFrom"),
        (at(NOW + 48 * HOUR), at(NOW - HOUR), "validFrom"),
    ],
    ids=["end before beginning", "end before now", "end ahead", "open and ahead", "both ahead", "ahead and backwards"],
)
def test_a_time_that_cannot_be_is_422_at_its_field(
    client: TestClient, since: str | None, until: str | None, name: str
) -> None:
    made = pair(client, validFrom=at(NOW - 2 * HOUR)).json()["link"]
    times = {"validFrom": since, "validTo": until}
    corrects = {"corrects": made["validFrom"], "meterId": "m-1"}
    corrected = client.put("/v1/links/v-1", json={**corrects, **times, "validFrom": since or at(NOW)})
    for refused in (pair(client, meterId="m-2", **times), corrected):
        assert [fault["name"] for fault in check_problem(refused, 422)["errors"]] == [name]


def test_delete_ends_the_open_link_once(client: TestClient) -> None:
    for missing in (client.delete("/v1/links/v-1"), client.get("/v1/links/v-1")):
        check_problem(missing, 404)
    pair(client)
    ended = client.delete("/api/v1/links/v-1").json()
    assert ended["validTo"] is not None
    for gone in (client.delete("/v1/links/v-1"), client.get("/v1/links/v-1")):
        assert "/v1/links?vehicleId=v-1" in check_problem(gone, 410)["detail"]
    assert client.get("/v1/links", params={"vehicleId": "v-1"}).json()["items"] == [ended]


def test_delete_removes_the_link_that_is_named_and_the_analytics_forget_it(
    database_url: str, tokens: Callable[[], tuple[str, dict[str, str]]]
) -> None:
    path, made = tokens()
    with client_of(build_app(settings(database_url, ANALYTICS_CACHE_TTL_S="3600", API_TOKENS_FILE=path))) as client:
        client.headers.update(bearer(made["write"]))
        send(client, [meter(NOW - n * MINUTE) for n in range(60)])
        send(client, [vehicle(NOW - n * MINUTE) for n in range(60)])
        before = pair(client, meterId="m-2", validFrom=at(NOW - 4 * HOUR)).json()["link"]
        wrong = pair(client, validFrom=at(NOW - 2 * HOUR)).json()["link"]
        assert client.get("/v1/analytics/performance/v-1").json()["acKwh"] == 90
        named = {"removes": wrong["validFrom"]}
        reader = bearer(made["read"])
        check_problem(client.delete("/v1/links/v-1", params=named, headers=reader), 403)

        removed = client.delete("/api/v1/links/v-1", params=named)

        assert (removed.status_code, removed.json()) == (200, wrong)
        assert client.get("/v1/links").json()["items"] == [{**before, "validTo": wrong["validFrom"]}]
        assert client.get("/v1/analytics/performance/v-1").json()["acKwh"] == 0


def test_a_removal_of_what_is_not_there_changes_nothing(client: TestClient) -> None:
    link = pair(client, validFrom=at(NOW - 2 * HOUR)).json()["link"]
    missing = check_problem(client.delete("/v1/links/v-1", params={"removes": at(NOW - HOUR)}), 409)
    assert "v-1 has no link that begins at" in missing["detail"]
    assert "/v1/links?vehicleId=v-1" in missing["detail"]
    check_problem(client.delete("/v1/links/v-2", params={"removes": at(NOW - HOUR)}), 404)
    for wrong in ("removes=", "removes=now", "validFrom=2026-03-14T15:00:00Z"):
        check_problem(client.delete(f"/v1/links/v-1?{wrong}"), 422)
    assert client.get("/v1/links").json()["items"] == [link]


def test_a_correction_changes_one_link_and_the_analytics(client: TestClient) -> None:
    send(client, [meter(NOW - n * MINUTE) for n in range(60)])
    send(client, [vehicle(NOW - n * MINUTE) for n in range(60)])
    wrong = pair(client, meterId="m-2", validFrom=at(NOW - HOUR)).json()["link"]
    assert client.get("/v1/analytics/performance/v-1").json()["acKwh"] == 0
    body = {"corrects": wrong["validFrom"], "meterId": "m-1", "validFrom": at(NOW - 2 * HOUR)}
    for _ in range(2):
        corrected = client.put("/v1/links/v-1", json=body)
        assert corrected.status_code == 200
        assert corrected.json() == {**wrong, "meterId": "m-1", "validFrom": body["validFrom"]}
    assert client.get("/v1/links").json()["items"] == [corrected.json()]
    assert client.get("/v1/analytics/performance/v-1").json()["acKwh"] == 90


def test_a_correction_that_cannot_be_is_refused(client: TestClient) -> None:
    before = pair(client, validFrom=at(NOW - 4 * HOUR), validTo=at(NOW - 3 * HOUR)).json()["link"]
    pair(client, validFrom=at(NOW - 2 * HOUR))
    body = {"corrects": at(NOW - 2 * HOUR), "meterId": "m-1", "validFrom": at(NOW - 3.5 * HOUR)}
    assert check_problem(client.put("/v1/links/v-1", json=body), 409)["link"] == before
    missing = check_problem(client.put("/v1/links/v-1", json={**body, "corrects": at(NOW)}), 409)
    assert "/v1/links?vehicleId=v-1" in missing["detail"]
    assert "link" not in missing
    check_problem(client.put("/v1/links/v-2", json={**body, "meterId": "m-2"}), 404)
    early = check_problem(client.put("/v1/links/v-1", json={**body, "validTo": at(NOW - 9 * HOUR)}), 422)
    assert [fault["name"] for fault in early["errors"]] == ["validTo"]
    assert len(client.get("/v1/links").json()["items"]) == 2


def test_links_are_filtered_and_paged(client: TestClient) -> None:
    for n in range(5):
        pair(client, vehicleId=f"v-{n}", meterId=f"m-{n % 2}-{n}", validFrom=at(NOW - HOUR))
    client.delete("/v1/links/v-2")
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = client.get("/v1/links", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        found += [link["vehicleId"] for link in page["items"]]
        cursor, pages = page["next"], pages + 1
    assert (found, pages) == ([f"v-{n}" for n in range(5)], 3)
    assert len(client.get("/v1/links", params={"open": "true"}).json()["items"]) == 4
    assert len(client.get("/v1/links", params={"meterId": "m-1-3"}).json()["items"]) == 1
    assert len(client.get("/v1/links", params={"at": at(NOW - 2 * HOUR)}).json()["items"]) == 0


# Devices.


def test_an_energy_mode_is_set_and_read(client: TestClient) -> None:
    check_problem(client.get("/v1/devices/meter/m-1"), 404)
    device = client.put("/v1/devices/meter/m-1", json={"energyMode": "register"})
    assert (device.status_code, device.json()["energyMode"]) == (200, "register")
    send(client, [meter(), vehicle()])
    assert client.get("/v1/devices/meter/m-1").json() == {
        "kind": "meter", "id": "m-1", "energyMode": "register", "suspectedEnergyMode": None,
        "firstSeen": at(NOW), "lastSeen": at(NOW),
    }  # fmt: skip
    assert client.get("/v1/devices/vehicle/v-1").json()["energyMode"] == "interval"


# Live and history.


def test_live_state_is_the_newest_reading_with_its_age(client: TestClient) -> None:
    send(client, [meter(), meter(NOW - MINUTE, voltage=1), vehicle()])
    found = client.get("/v1/meters/m-1").json()
    assert found.pop("ageS") >= 0
    assert found.pop("receivedAt") >= at(NOW)
    assert found == {"id": "m-1", "ts": at(NOW), "energyMode": "interval", "kwhConsumedAc": 1.5, "voltage": 230.0}
    assert client.get("/v1/vehicles/v-1").json()["soc"] == 80.0
    check_problem(client.get("/v1/vehicles/m-1"), 404)


@pytest.mark.parametrize("kind", ["meters", "vehicles"])
def test_devices_are_paged_in_the_order_of_their_ids(client: TestClient, kind: str) -> None:
    ids = [f"d-{n}" for n in range(5)]
    send(client, [meter(meterId=name) if kind == "meters" else vehicle(vehicleId=name) for name in ids])
    first = client.get(f"/v1/{kind}?limit=3").json()
    second = client.get(f"/v1/{kind}?limit=3&cursor={first['next']}").json()
    assert [item["id"] for item in first["items"] + second["items"]] == ids
    assert second["next"] is None


def test_history_is_paged_and_exported(client: TestClient) -> None:
    send(client, [meter(NOW - n * MINUTE, kwhConsumedAc=n) for n in range(2500)])
    path = "/v1/meters/m-1/readings"
    window = {"from": at(NOW - 2000 * MINUTE), "to": at(NOW)}
    found: list[dict[str, Any]] = []
    cursor = None
    while cursor is not None or not found:
        page = client.get(path, params={**window, "limit": 900, **({"cursor": cursor} if cursor else {})}).json()
        found += page["items"]
        cursor = page["next"]
    assert [item["kwhConsumedAc"] for item in found] == list(range(2000, 0, -1))

    as_csv = client.get(path, params=window, headers={"Accept": "text/csv"})
    assert as_csv.headers["content-type"].startswith("text/csv")
    assert "attachment" in as_csv.headers["content-disposition"]
    table = list(csv.DictReader(io.StringIO(as_csv.text)))
    assert [float(row["kwhConsumedAc"]) for row in table] == list(range(2000, 0, -1))
    assert table[0]["ts"] == found[0]["ts"]

    lines = client.get(path, params={**window, "format": "ndjson"}).text.splitlines()
    assert [json.loads(line) for line in lines] == found
    assert len(client.get(path).json()["items"]) == 100
    assert client.get(path, headers={"Accept": "text/csv;q=0.5, application/json"}).json()["next"]


def test_the_head_of_an_export_costs_no_export(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    send(client, [meter(NOW - n * MINUTE) for n in range(1, 3 * CHUNK_READINGS + 1)])
    written: list[int] = []

    def write(readings: Sequence[MeterHistory]) -> bytes:
        written.append(len(readings))
        return b""

    monkeypatch.setattr(export, "_write_csv", write)
    path = f"/v1/meters/m-1/readings?format=csv&from={at(NOW - 3000 * MINUTE)}&to={at(NOW)}"
    assert client.head(path).status_code == 200
    assert written == [CHUNK_READINGS]
    assert client.get(path).headers["content-type"] == client.head(path).headers["content-type"]
    assert written == [CHUNK_READINGS] * 5


async def test_exports_leave_connections_to_others(database_url: str) -> None:
    async with open_database(database_url) as opened, AsyncExitStack() as exports:
        for _ in range(LONG_MAX):
            await exports.enter_async_context(opened.long_connection(30))
        with pytest.raises(ProblemError, match="Too many exports"):
            await exports.enter_async_context(opened.long_connection(30))
        async with opened.connection() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        await exports.aclose()
        await exports.enter_async_context(opened.long_connection(30))


def test_an_export_too_many_is_503(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    send(client, [meter()])
    monkeypatch.setattr(database, "LONG_MAX", 0)
    problem = check_problem(client.get("/v1/meters/m-1/readings?format=csv"), 503)
    assert "Too many exports" in problem["detail"]
    assert client.get("/v1/meters/m-1/readings").status_code == 200


def test_an_export_of_nothing_has_its_head_and_of_nobody_is_404(client: TestClient) -> None:
    send(client, [vehicle(NOW - 100 * HOUR)])
    empty = client.get("/v1/vehicles/v-1/readings?format=csv")
    assert empty.text == "ts,receivedAt,soc,kwhDeliveredDc,batteryTemp\r\n"
    assert client.get("/v1/vehicles/v-1/readings?format=ndjson").text == ""
    assert client.get("/v1/vehicles/v-1/readings").json() == {"items": [], "next": None}
    for file_format in ("csv", "ndjson", "json"):
        check_problem(client.get(f"/v1/vehicles/v-2/readings?format={file_format}"), 404)


# Analytics.


@pytest.fixture
def charging(client: TestClient) -> TestClient:
    """A vehicle that got 0.9 kWh of each kWh its meter counted, for two hours."""
    pair(client, validFrom=at(NOW - 3 * HOUR))
    times = [NOW - n * MINUTE for n in range(1, 121)]
    send(client, [meter(ts, kwhConsumedAc=0.2) for ts in times] + [vehicle(ts, kwhDeliveredDc=0.18) for ts in times])
    return client


@pytest.mark.parametrize("path", ["/v1/analytics/performance/v-1?", "/api/v1/analytics/performance?vehicleId=v-1&"])
def test_performance_has_numerator_and_denominator(charging: TestClient, path: str) -> None:
    found = charging.get(f"{path}from={at(NOW - 2 * HOUR)}&to={at(NOW)}").json()
    assert (found["from"], found["to"]) == (at(NOW - 2 * HOUR), at(NOW))
    assert found["acKwh"] == pytest.approx(24.0)
    assert found["dcKwh"] == pytest.approx(21.6)
    assert found["lossKwh"] == pytest.approx(2.4)
    assert found["efficiency"] == pytest.approx(0.9)
    assert (found["status"], found["samples"], found["energyMode"]) == ("ok", 120, "interval")
    assert found["meters"][0]["meterId"] == "m-1"
    (example,) = OPERATIONS[0].answers[200].examples.values()
    assert found["reason"] == example.reason


def test_performance_of_nobody_is_404_and_of_an_unlinked_vehicle_is_not(client: TestClient) -> None:
    check_problem(client.get("/v1/analytics/performance/v-1"), 404)
    send(client, [vehicle(NOW - MINUTE)])
    assert client.get("/v1/analytics/performance/v-1").json()["status"] == "unlinked"


def test_a_series_has_the_performance_of_each_local_hour(charging: TestClient) -> None:
    asked = f"from={at(NOW - 2 * HOUR)}&to={at(NOW)}"
    found = charging.get(f"/v1/analytics/series/v-1?{asked}&step=hour&tz=Asia/Kolkata").json()
    points = found.pop("points")
    assert found == {
        "vehicleId": "v-1", "from": at(NOW - 2 * HOUR), "to": at(NOW), "step": "hour", "tz": "Asia/Kolkata",
    }  # fmt: skip
    assert (points[0]["from"], points[-1]["to"]) == (found["from"], found["to"])
    assert {datetime.fromisoformat(point["from"]).minute for point in points[1:]} == {30}
    for point in points:
        window = f"from={point['from']}&to={point['to']}"
        whole = charging.get(f"/v1/analytics/performance/v-1?{window}").json()
        assert point.items() <= {name: whole[name] for name in point}.items()
    assert sum(point["acKwh"] for point in points) == pytest.approx(24.0)
    assert charging.get(f"/api/v1/analytics/series/v-1?{asked}&step=hour&tz=Asia/Kolkata").json()["points"] == points


def test_a_series_is_the_last_day_by_the_hour_or_the_last_30_days(charging: TestClient) -> None:
    hours = charging.get(f"/v1/analytics/series/v-1?to={at(NOW)}").json()
    assert (hours["step"], hours["tz"], hours["from"]) == ("hour", "UTC", at(NOW - 24 * HOUR))
    days = charging.get("/v1/analytics/series/v-1?step=day&tz=Pacific/Auckland").json()["points"]
    assert len(days) == 30
    assert [point["from"] for point in days[1:]] == [point["to"] for point in days[:-1]]
    assert {point["samples"] for point in days[:-3]} == {0}
    assert {datetime.fromisoformat(point["from"]).astimezone(ZoneInfo("Pacific/Auckland")).hour for point in days} == {
        0
    }


def test_a_series_of_nobody_is_404_and_one_of_an_unlinked_vehicle_is_not(client: TestClient) -> None:
    check_problem(client.get("/v1/analytics/series/v-1"), 404)
    send(client, [vehicle(NOW - MINUTE)])
    points = client.get("/v1/analytics/series/v-1").json()["points"]
    assert {point["status"] for point in points} == {"unlinked"}
    assert sum(point["dcKwhUnlinked"] for point in points) == 1.25


def test_a_series_has_a_tag(charging: TestClient) -> None:
    path = f"/v1/analytics/series/v-1?from={at(NOW - 2 * HOUR)}&to={at(NOW)}"
    tag = charging.get(path).headers["etag"]
    assert charging.get(path, headers={"If-None-Match": tag}).status_code == 304
    assert charging.get(f"{path}&tz=Asia/Kolkata", headers={"If-None-Match": tag}).status_code == 200


@pytest.mark.parametrize("name", ["Asia/Calcutta", "Europe/Kiev", "US/Eastern", "Etc/GMT%2B5", "EST5EDT"])
def test_a_zone_may_have_one_of_its_older_names(charging: TestClient, name: str) -> None:
    assert charging.get(f"/v1/analytics/series/v-1?tz={name}").status_code == 200


def test_the_fleet_is_summed(charging: TestClient) -> None:
    found = charging.get(f"/v1/analytics/fleet?from={at(NOW - 2 * HOUR)}&to={at(NOW)}").json()
    assert found["efficiency"] == pytest.approx(0.9)
    assert (found["vehicles"], found["linked"], found["statusCounts"]["ok"]) == (1, 1, 1)


# What is refused.

ID = "allowed: 1 to 64 of A-Z a-z 0-9 . _ : -"
LONG_AGO = "2020-01-01T00:00:00Z"
WRONG = [
    ("GET", "/v1/links?vehicleId=a b", "vehicleId", ID),
    ("GET", "/v1/links?limit=0", "limit", "allowed: a whole number from 1 to 1000"),
    ("GET", "/v1/links?limit=many", "limit", "allowed: a whole number"),
    ("GET", "/v1/links?limit=1&limit=2", "limit", "given 2 times"),
    ("GET", "/v1/links?open=yes", "open", "allowed: true or false"),
    ("GET", "/v1/links?at=now", "at", "RFC 3339"),
    ("GET", "/v1/links?cursor=x", "cursor", "`next` of the page before"),
    ("GET", "/v1/links?vehicle=v-1", "vehicle", "is not known here"),
    ("GET", "/v1/links/a%20b", "vehicleId", ID),
    ("GET", f"/v1/links/{'x' * 65}", "vehicleId", ID),
    ("DELETE", "/v1/links/a%0A", "vehicleId", ID),
    ("GET", "/v1/meters?limit=1001", "limit", "1000"),
    ("GET", "/v1/meters?cursor=%C3%A4", "cursor", "`next` of the page before"),
    ("GET", "/v1/vehicles/%00", "id", ID),
    ("GET", "/v1/vehicles/%F0%9F%9A%97/readings", "id", ID),
    ("GET", "/v1/vehicles/v/readings?format=xml", "format", "allowed: json, csv or ndjson"),
    ("GET", "/v1/vehicles/v/readings?format=csv&limit=3", "limit", "pages of JSON"),
    ("GET", "/v1/vehicles/v/readings?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "from", "is not before `to`"),
    ("GET", "/v1/vehicles/v/readings?from=2026-01-02T00:00:00", "from", "RFC 3339 with an offset"),
    ("GET", "/v1/vehicles/v/readings?from=1770000000", "from", "RFC 3339"),
    ("GET", "/v1/vehicles/v/readings?from=0001-01-01T00:00:00%2B14:00", "from", "from 2000 to 2099"),
    ("GET", "/v1/vehicles/v/readings?to=9999-12-31T23:59:59-14:00", "to", "from 2000 to 2099"),
    ("GET", f"/v1/vehicles/v/readings?from={LONG_AGO}", "from", "allowed: 366 days"),
    ("GET", "/v1/analytics/performance", "vehicleId", "is missing"),
    ("GET", "/v1/analytics/performance/a%20b", "vehicleId", ID),
    ("GET", f"/v1/analytics/performance/v?from={LONG_AGO}", "from", "allowed: 366 days"),
    ("GET", f"/v1/analytics/series/v?from={LONG_AGO}", "from", "allowed: 366 days"),
    ("GET", "/v1/analytics/series/v?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "from", "is not before `to`"),
    ("GET", "/v1/analytics/series/v?step=week", "step", "`step` is 'week'; allowed: hour or day"),
    ("GET", "/v1/analytics/series/v?worst=1", "worst", "is not known here"),
    ("GET", "/v1/analytics/series/a%20b", "vehicleId", ID),
    *[
        ("GET", f"/v1/analytics/series/v?tz={name}", "tz", f"`tz` is '{name}'; allowed: the name of an IANA")
        for name in (
            "Mars/Olympus", "Europe", "europe/berlin", "localtime", "Factory", "right/UTC", "../UTC", "UTC/", "",
        )
    ],
    ("GET", "/v1/analytics/series/v?tz=%2Fetc%2Fpasswd", "tz", "`tz` is '/etc/passwd'"),
    ("GET", f"/v1/analytics/series/v?tz={'X' * 200}", "tz", "an IANA time zone, such as Europe/Berlin"),
    ("GET", "/v1/analytics/series/v?tz=UTC%00", "tz", "an IANA time zone, such as Europe/Berlin"),
    ("GET", f"/v1/analytics/fleet?from={LONG_AGO}", "from", "allowed: 366 days"),
    ("GET", "/v1/analytics/fleet?worst=-1", "worst", "0 to 100"),
    ("GET", "/v1/devices/car/1", "kind", "allowed: meter or vehicle"),
    ("GET", "/livez?verbose=1", "verbose", "is not known here; allowed: none"),
    ("POST", "/v1/ingest?kind=meter", "kind", "is not known here"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "name", "sentence"), WRONG)
def test_a_wrong_parameter_is_422_with_a_sentence(
    shared: TestClient, method: str, path: str, name: str, sentence: str
) -> None:
    problem = check_problem(shared.request(method, path), 422)
    assert problem["errors"][0]["name"] == name
    assert sentence in problem["detail"]


@pytest.mark.parametrize(
    ("path", "body", "name", "sentence"),
    [
        ("/v1/links", b"{", "", "not JSON"),
        ("/v1/links", b"\xff", "", "not JSON"),
        ("/v1/links", b"[" * 10_000, "", "not JSON"),
        ("/v1/links", b"[]", "", "not a JSON object"),
        ("/v1/links", b"{}", "vehicleId", "is missing"),
        ("/v1/links", b'{"vehicleId": 1, "meterId": "m"}', "vehicleId", ID),
        ("/v1/links", b'{"vehicleId": null, "meterId": "m"}', "vehicleId", ID),
        ("/v1/links", b'{"vehicleId": "v\\u0000", "meterId": "m"}', "vehicleId", ID),
        ("/v1/links", b'{"vehicleId": "v", "meterId": "m", "from": 1}', "from", "is not known here"),
        ("/v1/links", b'{"vehicleId": "v", "meterId": "m", "validFrom": 1770000000}', "validFrom", "RFC 3339"),
        ("/v1/devices/meter/m", b'{"energyMode": "odd"}', "energyMode", "interval or register or session"),
    ],
)
def test_a_wrong_body_is_422_with_a_sentence(
    shared: TestClient, path: str, body: bytes, name: str, sentence: str
) -> None:
    method = "PUT" if "devices" in path else "POST"
    problem = check_problem(
        shared.request(method, path, content=body, headers={"Content-Type": "application/json"}), 422
    )
    assert problem["errors"][0]["name"] == name
    assert sentence in problem["detail"]


def test_all_that_is_wrong_is_said_at_once(shared: TestClient) -> None:
    problem = check_problem(shared.get("/v1/links?limit=0&open=x&at=y&odd=1"), 422)
    assert {fault["name"] for fault in problem["errors"]} == {"limit", "open", "at", "odd"}


def test_other_media_types_and_large_bodies_are_refused(shared: TestClient) -> None:
    check_problem(shared.post("/v1/links", content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    check_problem(shared.post("/v1/links", json={"vehicleId": "v" * 100_000, "meterId": "m"}), 413)
