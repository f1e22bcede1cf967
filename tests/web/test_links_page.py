"""The page of links: who sees what, what its forms change, and whose forms change nothing."""

import re
from collections.abc import Callable
from datetime import datetime
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import build_app
from api.web import links
from api.web.forms import instant
from tests.api.conftest import MINUTE, NOW, bearer, client_of, meter, settings, vehicle
from tests.web.conftest import fields, form_key, send, sign_in, words

HOUR = 60 * MINUTE
PAIR = {"vehicleId": "v-1", "meterId": "m-1"}
GONE = "Somebody else has ended, corrected or removed this link"
MakeTokens = Callable[[], tuple[str, dict[str, str]]]


def at(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def stored(client: TestClient, **options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/v1/links", **options).json()["items"]
    return found


def make(client: TestClient, **body: str) -> dict[str, Any]:
    made = client.post("/v1/links", json={**PAIR, **body})
    assert made.status_code == 201, made.text
    link: dict[str, Any] = made.json()["link"]
    return link


def seen(link: dict[str, Any]) -> dict[str, str]:
    """What a form carries of an open link, for whoever corrects or removes it."""
    return {"vehicleId": link["vehicleId"], "wasMeterId": link["meterId"], "wasValidFrom": link["validFrom"]}


def test_pairing_by_the_form_changes_the_analytics(database_url: str) -> None:
    with client_of(build_app(settings(database_url, ANALYTICS_CACHE_TTL_S="3600"))) as client:
        client.post("/v1/ingest", json=[meter(NOW - n * MINUTE) for n in range(60)])
        client.post("/v1/ingest", json=[vehicle(NOW - n * MINUTE) for n in range(60)])
        performance = "/v1/analytics/performance/v-1"
        assert client.get(performance).json()["status"] == "unlinked"
        assert "No vehicle is linked with a meter: pair them" in words(client.get("/"))

        done = send(client, "/links", {**PAIR, "validFrom": at(NOW - 2 * HOUR), "validTo": ""}, page="/links")

        assert (done.status_code, done.headers["location"]) == (303, "/links?show=all&vehicleId=v-1&done=paired")
        assert "The two are paired." in words(client.get(done.headers["location"]))
        assert client.get(performance).json()["acKwh"] == 90
        assert "No vehicle is linked" not in words(client.get("/"))


def test_pairing_elsewhere_says_that_the_open_link_ended(client: TestClient) -> None:
    first = make(client, validFrom=at(NOW - 2 * HOUR))
    done = send(client, "/links", {"vehicleId": " v-1 ", "meterId": "m-2"}, page="/links")
    assert "The open links that they had with others ended" in words(client.get(done.headers["location"]))
    ended, begun = stored(client)
    assert (ended["meterId"], ended["validTo"]) == ("m-1", begun["validFrom"])
    assert first["validTo"] is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-03-14T15:00:00Z", "2026-03-14T15:00:00Z"),
        ("2026-03-14T15:00", "2026-03-14T15:00:00Z"),
        ("2026-03-14 15:00:01.5 UTC", "2026-03-14T15:00:01.5Z"),
        ("2026-03-14T16:00+01:00", "2026-03-14T16:00:00+01:00"),
        ("2026-03-14", "2026-03-14T00:00:00Z"),
        ("14.3.2026", "14.3.2026"),
        ("\u0662026-03-14", "\u0662026-03-14"),
    ],
)
def test_times_are_taken_as_people_write_them(text: str, meant: str) -> None:
    assert instant(text) == meant


@pytest.mark.parametrize(
    ("wrong", "name", "sentence"),
    [
        ({"vehicleId": ""}, "vehicleId", "The vehicle's id is missing; allowed: 1 to 64 of"),
        ({"meterId": "m 1"}, "meterId", "The meter's id is 'm 1'; allowed: 1 to 64 of"),
        ({"validFrom": "yesterday"}, "validFrom", "The beginning is 'yesterday'; allowed: RFC 3339"),
        ({"validTo": "1999-01-01"}, "validTo", "The end is '1999-01-01T00:00:00Z'; allowed: RFC 3339"),
        ({"validFrom": "2026-01-02", "validTo": "2026-01-01"}, "validTo", "which is not after its beginning"),
        ({"validFrom": "2099-01-02"}, "validFrom", "is in the future"),
        (
            {"validFrom": "2099-01-02", "validTo": "2099-01-03"},
            "validFrom",
            "2099-01-02T00:00:00+00:00 is in the future",
        ),
        ({"validFrom": "2026-01-02", "validTo": "2099-01-03"}, "validTo", "2099-01-03T00:00:00+00:00 is in the future"),
    ],
)
def test_what_is_wrong_stands_beside_its_field(
    client: TestClient, wrong: dict[str, str], name: str, sentence: str
) -> None:
    refused = send(client, "/links", {**PAIR, **wrong}, page="/links")
    assert refused.status_code == 422
    assert sentence in words(refused)
    assert fields(refused)[name]["aria-invalid"] == "true"
    assert f'id="{fields(refused)[name]["aria-describedby"].split()[0]}" role="alert"' in refused.text
    assert {field: fields(refused)[field]["value"] for field in {**PAIR, **wrong}} == {**PAIR, **wrong}
    assert stored(client) == []


@pytest.mark.parametrize(("other", "name"), [("v-1", "vehicleId"), ("v-2", "meterId")])
def test_an_overlap_is_409_and_names_the_link_and_the_form_stays_filled(
    client: TestClient, other: str, name: str
) -> None:
    make(client, vehicleId=other, validFrom=at(NOW - 4 * HOUR), validTo=at(NOW - 2 * HOUR))
    form = {**PAIR, "validFrom": at(NOW - 3 * HOUR), "validTo": at(NOW - HOUR)}
    refused = send(client, "/links", form, page="/links")
    assert refused.status_code == 409
    assert f"The link overlaps another: vehicle {other} is linked with meter m-1 since" in words(refused)
    assert f'href="/links?show=all&amp;vehicleId={other}"' in refused.text
    assert {field: fields(refused)[field]["value"] for field in form} == form
    assert [field for field in fields(refused) if "aria-invalid" in fields(refused)[field]] == [name]
    assert len(stored(client)) == 1


def test_an_open_link_is_ended_and_only_the_one_that_was_seen(client: TestClient) -> None:
    seen = make(client, validFrom=at(NOW - 2 * HOUR))
    button = {"vehicleId": "v-1", "validFrom": seen["validFrom"]}
    assert f'name="validFrom" value="{seen["validFrom"]}"' in client.get("/links").text
    make(client, meterId="m-2", validFrom=at(NOW - HOUR))

    late = send(client, "/links/end", button, page="/links")

    assert late.status_code == 410
    assert GONE in words(late)
    assert stored(client)[1]["validTo"] is None

    done = send(client, "/links/end", {**button, "validFrom": at(NOW - HOUR)}, page="/links")

    assert done.headers["location"] == "/links?show=all&vehicleId=v-1&done=ended"
    assert stored(client)[1]["validTo"] is not None
    assert "No vehicle is linked with a meter now." in words(client.get("/links"))


def test_a_link_is_corrected_to_the_microsecond(client: TestClient) -> None:
    wrong = make(client, meterId="m-9")
    page = f"/links/correct?vehicleId=v-1&validFrom={wrong['validFrom']}"
    assert page.replace("&", "&amp;").replace(":", "%3A") in client.get("/links").text
    shown = {name: field["value"] for name, field in fields(client.get(page)).items() if name != "id"}
    assert shown == {"meterId": "m-9", "validFrom": wrong["validFrom"], "validTo": ""}
    form = {**shown, **seen(wrong), "meterId": "m-1"}

    for _ in range(2):
        done = send(client, "/links/correct", form, page=page if _ == 0 else "/links")

        assert done.headers["location"] == "/links?show=all&vehicleId=v-1&done=corrected"
        assert stored(client) == [{**wrong, "meterId": "m-1"}]


def test_a_correction_of_a_link_that_has_changed_meanwhile_changes_nothing(client: TestClient) -> None:
    link = make(client, validFrom=at(NOW - 2 * HOUR))
    page = f"/links/correct?vehicleId=v-1&validFrom={link['validFrom']}"
    client.delete("/v1/links/v-1")
    before = stored(client)
    late = send(client, "/links/correct", {**seen(link), "meterId": "m-9", "validFrom": link["validFrom"]}, page=page)
    assert late.status_code == 409
    assert GONE in words(late)
    assert stored(client) == before


def test_a_correction_that_cannot_be_changes_nothing_and_says_why(client: TestClient) -> None:
    make(client, meterId="m-2", validFrom=at(NOW - 4 * HOUR), validTo=at(NOW - 3 * HOUR))
    link = make(client, validFrom=at(NOW - 2 * HOUR))
    before, page = stored(client), f"/links/correct?vehicleId=v-1&validFrom={link['validFrom']}"
    form = {**seen(link), "meterId": "m-1", "validFrom": at(NOW - 3.5 * HOUR)}

    overlap = send(client, "/links/correct", form, page=page)
    reverse = send(client, "/links/correct", {**form, "validTo": at(NOW - 9 * HOUR)}, page=page)
    early = send(client, "/links/correct", {**form, "validFrom": "2099-01-01", "validTo": "2099-01-02"}, page=page)
    gone = send(client, "/links/correct", {**form, "wasValidFrom": at(NOW - HOUR)}, page=page)

    assert overlap.status_code == 409
    assert "vehicle v-1 is linked with meter m-2" in words(overlap)
    assert fields(overlap)["validFrom"]["value"] == form["validFrom"]
    assert fields(overlap)["validFrom"]["aria-invalid"] == "true"
    assert reverse.status_code == 422
    assert "which is not after its beginning" in words(reverse)
    assert fields(reverse)["validTo"]["aria-invalid"] == "true"
    assert "aria-invalid" not in fields(early)["validTo"]
    assert fields(early)["validFrom"]["aria-invalid"] == "true"
    assert gone.status_code == 409
    assert GONE in words(gone)
    assert client.get(f"/links/correct?vehicleId=v-1&validFrom={at(NOW - HOUR)}").status_code == 404
    assert client.get("/links/correct?vehicleId=v-1").status_code == 422
    for wrong in ({"wasValidFrom": "then"}, {"wasMeterId": ""}):
        assert send(client, "/links/correct", {**form, **wrong}, page=page).status_code == 422
    assert stored(client) == before


def test_a_link_is_removed_once_that_is_confirmed(client: TestClient) -> None:
    other = make(client, meterId="m-2", validFrom=at(NOW - 4 * HOUR), validTo=at(NOW - 3 * HOUR))
    wrong = make(client, validFrom=at(NOW - 2 * HOUR))
    page = f"/links/remove?vehicleId=v-1&validFrom={wrong['validFrom']}"
    assert page.replace("&", "&amp;").replace(":", "%3A") in client.get("/links").text
    asked = client.get(page)
    assert "Remove a link of v-1 ?" in words(asked)
    assert "With m-1 , open since" in words(asked)
    assert [f'name="{name}" value="{value}"' in asked.text for name, value in seen(wrong).items()] == [True] * 3
    assert len(stored(client)) == 2

    done = send(client, "/links/remove", seen(wrong), page=page)

    assert done.headers["location"] == "/links?show=all&vehicleId=v-1&done=removed"
    assert "The link is removed" in words(client.get(done.headers["location"]))
    assert stored(client) == [other]


def test_a_link_that_has_changed_meanwhile_is_not_removed(client: TestClient) -> None:
    link = make(client, validFrom=at(NOW - 2 * HOUR))
    client.delete("/v1/links/v-1")
    before = stored(client)
    late = send(client, "/links/remove", seen(link), page="/links")
    assert late.status_code == 409
    assert GONE in words(late)
    assert client.get(f"/links/remove?vehicleId=v-1&validFrom={at(NOW - HOUR)}").status_code == 404
    assert send(client, "/links/remove", {**seen(link), "wasValidFrom": ""}, page="/links").status_code == 422
    assert stored(client) == before


# Who may.


def forms_of(link: dict[str, Any]) -> dict[str, dict[str, str]]:
    """A form of each kind that would change something."""
    named = {"vehicleId": link["vehicleId"]}
    return {
        "/links": {"vehicleId": "v-2", "meterId": "m-2"},
        "/links/end": {**named, "validFrom": link["validFrom"]},
        "/links/correct": {**seen(link), "meterId": "m-9", "validFrom": link["validFrom"]},
        "/links/remove": seen(link),
    }


def test_a_form_without_its_key_or_from_elsewhere_changes_nothing(client: TestClient) -> None:
    link = make(client, validFrom=at(NOW - HOUR))
    others = form_key(client, "/links")
    client.cookies.clear()
    own = form_key(client, "/links")
    assert own != others
    cross_site = {"Sec-Fetch-Site": "cross-site"}
    for path, form in forms_of(link).items():
        for key, headers in (
            (None, {}),
            ("", {}),
            (others, {}),
            (own, cross_site),
            (own, {"Sec-Fetch-Site": "same-site"}),
        ):
            data = {**form, **({} if key is None else {"form_key": key})}
            refused = client.post(path, data=data, headers=headers, follow_redirects=False)
            assert refused.status_code == 403, (path, key, headers)
            assert "The form was not sent from a page of this site" in words(refused)
        assert client.post(path, json=form).status_code == 415
    assert stored(client) == [link]


def test_a_reader_sees_the_links_and_may_not_change_them(database_url: str, tokens: MakeTokens) -> None:
    path, made = tokens()
    with client_of(build_app(settings(database_url, API_TOKENS_FILE=path))) as client:
        created = client.post("/v1/links", json=PAIR, headers=bearer(made["write"])).json()["link"]
        assert client.get("/links", follow_redirects=False).headers["location"] == "/sign-in?next=/links"
        sign_in(client, made["read"])

        page = client.get("/links")

        assert "v-1" in words(page)
        assert "takes a token of the role write; a-read may only read" in words(page)
        assert "<button>Pair</button>" not in page.text
        assert "End now" not in page.text
        for target, form in forms_of(created).items():
            refused = send(client, target, form, page="/links")
            assert refused.status_code == 403
            assert "takes a token of the role write" in words(refused)
        assert "Remove" not in page.text
        for path in ("/links/correct", "/links/remove"):
            asked = client.get(path, params={"vehicleId": "v-1", "validFrom": created["validFrom"]})
            assert asked.status_code == 403
        assert stored(client, headers=bearer(made["read"])) == [created]


def test_a_writer_may_change_them_until_the_token_is_revoked(database_url: str, tokens: MakeTokens) -> None:
    path, made = tokens()
    with client_of(build_app(settings(database_url, API_TOKENS_FILE=path))) as client:
        sign_in(client, made["write"])
        key = form_key(client, "/links")
        assert client.post("/links", data={"form_key": key, **PAIR}, follow_redirects=False).status_code == 303
        Path(path).write_text("# nobody any more\n")
        assert client.post("/links", data={"form_key": key, **PAIR}).status_code == 401


# The list.


def test_open_links_are_shown_first_and_ended_ones_by_choice(client: TestClient) -> None:
    make(client, meterId="m-old", validFrom=at(NOW - 4 * HOUR), validTo=at(NOW - 3 * HOUR))
    make(client, meterId="m-new", validFrom=at(NOW - 2 * HOUR))
    shown, everything = words(client.get("/links")), words(client.get("/links?show=all"))
    assert "m-new" in shown
    assert "m-old" not in shown
    assert "m-old" in everything
    assert "1 h" in everything
    by_meter = words(client.get("/links?show=open&vehicleId=&meterId=m-old"))
    assert "m-old has no open link." in by_meter
    assert "v-1" in words(client.get("/links?show=all&meterId=m-old"))
    both = words(client.get("/links?vehicleId=v-1&meterId=m-none"))
    assert "v-1 and m-none have no open link with each other." in both


@pytest.mark.parametrize(
    "query", ["vehicleId=a b", "show=x", "cursor=x", "done=<b>", "done=anything", "x=1", "show=open&show=all"]
)
def test_a_wrong_choice_is_refused_and_never_repeated_as_html(client: TestClient, query: str) -> None:
    refused = client.get(f"/links?{query}")
    assert refused.status_code == 422
    assert "<b>" not in refused.text.replace('<b class="', "")


def test_a_long_list_has_pages(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "LINKS_A_PAGE", 2)
    for n in range(5):
        make(client, vehicleId=f"v-{n}", meterId=f"m-{n}", validFrom=at(NOW - HOUR))
    seen, path, pages = "", "/links?vehicleId=&meterId=", 0
    while path:
        page = client.get(path)
        seen, pages = seen + words(page), pages + 1
        following = re.search(r'href="([^"]+)#links" rel="next"', page.text)
        path = unescape(following[1]) if following else ""
    assert pages == 3
    assert all(f"m-{n}" in seen for n in range(5))


def test_ids_that_are_known_are_offered_to_who_may_write(client: TestClient) -> None:
    client.post("/v1/ingest", json=[meter(), vehicle()])
    page = client.get("/links").text
    assert '<datalist id="vehicles"><option value="v-1"></option></datalist>' in page
    assert '<datalist id="meters"><option value="m-1"></option></datalist>' in page
