"""The first page as it comes from the sidecar, and the overview that it shows."""

import asyncio
import json
import re
import signal
import urllib.request
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import build_app
from api.web import overview
from api.web.books import read_books
from sql.overview import Silent, list_silent
from sql.pool import Connection
from sql.store import VEHICLE, Kind
from tests.api.conftest import NOW, client, client_of, meter, settings, tokens, vehicle
from tests.api.server import sidecar

__all__ = ["client", "tokens"]
AWAY = "http://127.0.0.1:9"


@pytest.fixture
def charged(client: TestClient) -> TestClient:
    """A sidecar with a good vehicle and a leaky one, each with a reading every three minutes for 13 hours."""
    readings: list[dict[str, Any]] = []
    for n in range(260):
        ts = NOW - timedelta(minutes=3 * n + 1)
        for number, dc_kwh in ((1, 0.09), (2, 0.06)):
            readings.append(meter(ts, meterId=f"m-{number}", kwhConsumedAc=0.1))
            readings.append(vehicle(ts, vehicleId=f"v-{number}", kwhDeliveredDc=dc_kwh))
    assert client.post("/v1/ingest", json=readings).json()["stored"] == len(readings)
    for number in (1, 2):
        link = {
            "vehicleId": f"v-{number}",
            "meterId": f"m-{number}",
            "validFrom": (NOW - timedelta(hours=14)).isoformat(),
        }
        assert client.post("/v1/links", json=link).status_code == 201
    return client


def text_of(html: str) -> str:
    """What people read: no elements, one blank between words."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).replace("\u202f", " ").replace("&nbsp;", " ").split())


def test_an_empty_fleet_says_what_to_do_next(client: TestClient) -> None:
    page = text_of(client.get("/").text)
    assert "No vehicle has sent a reading yet" in page
    assert "vehicles/ID/reading" in page


def test_the_lost_energy_is_that_of_the_analytics(charged: TestClient) -> None:
    fleet = charged.get("/v1/analytics/fleet").json()
    page = text_of(charged.get("/").text)
    assert fleet["lossKwh"] == pytest.approx(13.0)
    assert "13.0 kWh 25.0 % of what the meters counted" in page
    assert "AC in, at the meters 52.0 kWh DC out, into batteries 39.0 kWh" in page


def test_the_worst_vehicle_comes_first_with_a_dot_for_each_hour(charged: TestClient) -> None:
    page = charged.get("/").text
    rows = re.findall(r'<tr class="(\w+)".*?<a href="/vehicles/(v-\d)">(.*?)</tr>', page, re.DOTALL)
    assert [row[:2] for row in rows] == [("low_efficiency", "v-2"), ("ok", "v-1")]
    dots = [re.findall(r'<circle class="(\w+)"', row[2]) for row in rows]
    assert [set(row) for row in dots] == [{"low"}, {"good"}]
    assert 12 <= len(dots[0]) <= 14


def test_silent_devices_and_their_other_ends_are_listed(charged: TestClient) -> None:
    page = charged.get("/").text
    assert re.findall(r'href="/meters/(m-\d)"', page) == ["m-1", "m-2"]
    meters = charged.get("/devices?kind=meter&begins=m-2").text
    assert re.findall(r'href="/(?:meters|vehicles)/([mv]-\d)"', meters) == ["m-2", "v-2"]
    assert "No vehicle has an id that begins with x" in charged.get("/devices?begins=x").text


@pytest.mark.parametrize("query", ["kind=car", "begins=%3Cscript%3E", "limit=5"])
def test_a_wrong_choice_of_devices_is_told(client: TestClient, query: str) -> None:
    answer = client.get(f"/?{query}")
    assert answer.status_code == 422
    assert "allowed:" in answer.text
    assert "<script>" not in answer.text


@pytest.mark.parametrize(
    ("wanted", "there"),
    [("v-1", "/vehicles/v-1"), ("m-2", "/meters/m-2"), ("v-", "/?kind=vehicle&begins=v-#devices")],
)
def test_a_device_is_found_by_its_id_or_by_how_it_begins(charged: TestClient, wanted: str, there: str) -> None:
    answer = charged.get("/find", params={"id": wanted}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, there)


def test_a_device_that_is_not_there_is_told(charged: TestClient) -> None:
    answer = charged.get("/find?id=nobody")
    assert answer.status_code == 404
    assert "No vehicle and no meter has an id that begins with nobody" in answer.text


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How the ids begin that the database was asked for, in the order of asking; what it says is kept for long."""
    prefixes: list[str] = []

    async def look(connection: Connection, kind: Kind, prefix: str, limit: int) -> list[Silent]:
        prefixes.append(prefix)
        return await list_silent(connection, kind, prefix, limit)

    monkeypatch.setattr(overview, "list_silent", look)
    monkeypatch.setattr(overview, "INTERVAL_S", 3600.0)
    return prefixes


async def test_many_who_filter_alike_share_one_look_up(database_url: str, looked: list[str]) -> None:
    app = build_app(settings(database_url, DAEMON_URLS="none"))
    async with app.router.lifespan_context(app):
        watch = app.state.site.watch
        await asyncio.gather(*(watch.silent(VEHICLE, "v-") for _ in range(300)))
        await watch.silent(VEHICLE, "v-1")
        await asyncio.gather(*(watch.silent(VEHICLE, prefix) for prefix in ("v-", "v-1")))
    assert looked == ["v-", "v-1"]


async def test_of_filters_those_are_kept_that_were_used_last(
    database_url: str, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "FILTERS_MAX", 2)
    app = build_app(settings(database_url, DAEMON_URLS="none"))
    async with app.router.lifespan_context(app):
        for prefix in ("a", "b", "a", "c", "a", "b"):
            await app.state.site.watch.silent(VEHICLE, prefix)
    assert looked == ["a", "b", "c", "b"]


def test_rejections_are_counted_by_reason(charged: TestClient) -> None:
    charged.post("/v1/ingest", json=[vehicle(soc=101.0), vehicle(soc=102.0), meter(voltage=...)])
    page = text_of(charged.get("/").text)
    assert "Rejected in 24 h 3" in page
    assert "Rejected: 2 out of range, 1 missing field" in page


def test_books_that_cannot_be_read_are_told_and_not_shown_as_zero(database_url: str) -> None:
    with client_of(build_app(settings(database_url, DAEMON_URLS=AWAY))) as client:
        page = text_of(client.get("/").text)
    assert "Unaccounted –" in page
    assert f"cannot be read, so the figures leave it out. {AWAY}" in page


def test_without_an_address_no_books_are_asked_for(database_url: str) -> None:
    with client_of(build_app(settings(database_url, DAEMON_URLS="none"))) as client:
        assert "The daemons' books are not shown" in text_of(client.get("/").text)


async def test_a_daemon_that_is_away_is_named(unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    books = await read_books([url])
    assert (books.daemons, len(books.away)) == (1, 1)
    assert books.away[0].startswith(f"{url}: ")


def test_a_large_fleet_without_full_hours_says_so(charged: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "SMALL_FLEET_MAX", 1)
    assert "No full hour of the last two days is summed up yet" in text_of(charged.get("/").text)


def test_who_has_no_cookie_is_led_to_the_sign_in(
    database_url: str, tokens: Callable[[], tuple[str, dict[str, str]]]
) -> None:
    path, _ = tokens()
    with client_of(build_app(settings(database_url, API_TOKENS_FILE=path))) as client:
        answer = client.get("/?kind=meter", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=/%3Fkind%3Dmeter")
        assert client.get("/devices", follow_redirects=False).status_code == 401
        assert client.get("/live", follow_redirects=False).status_code == 401


def test_a_sidecar_that_is_stopped_ends_its_streams_in_good_order(tmp_path: Path, database_url: str) -> None:
    with (
        sidecar(tmp_path, database_url, DAEMON_URLS="none") as running,
        urllib.request.urlopen(f"{running.url}/live", timeout=30) as stream,
    ):
        assert stream.readline() == b"event: parts\r\n"
        running.process.signal(signal.SIGTERM)
        assert stream.read()  # to its end
        assert running.process.wait(30) == 0  # before the block ends: a second signal would not wait for anything
    levels = {json.loads(line)["level"] for line in running.process.log.read_text().splitlines()}
    assert levels == {"info"}
