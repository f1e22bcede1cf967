"""Who looks at the pages: what the cookie is, what ends it, and whose forms are taken."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from api.app import build_app
from api.web import fleet, session
from api.web.pages import Visit
from api.web.session import COOKIE, Ended
from tests.api.conftest import client_of, settings
from tests.web.people import Door, form_key, sign_in


def is_signed_in(browser: TestClient) -> bool:
    """Whether the first page is shown, and not the way to sign in."""
    answer = browser.get("/")
    assert answer.status_code in (200, 303)
    return answer.status_code == 200


@pytest.mark.parametrize(("origin", "is_secure"), [("https://fleet.example", True), ("http://localhost", False)])
def test_the_cookie_is_for_this_site_and_for_no_script(door: Door, origin: str, is_secure: bool) -> None:
    answer = sign_in(door.browser(), door.tokens["read"], {"Origin": origin})
    assert answer.status_code == 303
    value, *flags = answer.headers["set-cookie"].split("; ")
    assert value.startswith(f"{COOKIE}=")
    assert {"HttpOnly", "Path=/", "SameSite=lax", f"Max-Age={12 * 3600}"} <= set(flags)
    assert ("Secure" in flags) == is_secure


def test_the_cookie_holds_no_token_and_is_another_after_signing_in(door: Door) -> None:
    browser = door.browser()
    form_key(browser, "/sign-in")
    stranger = browser.cookies[COOKIE]
    sign_in(browser, door.tokens["read"])
    assert is_signed_in(browser)
    assert browser.cookies[COOKIE] != stranger
    assert door.tokens["read"] not in browser.cookies[COOKIE]


@pytest.mark.parametrize("token", ["", "fw_nonsense", "ü", "\x00", "fw_" + "x" * 10_000])
def test_what_is_no_token_signs_nobody_in(door: Door, token: str) -> None:
    browser = door.browser()
    answer = sign_in(browser, token)
    assert answer.status_code == 403
    assert "Nobody knows this token" in answer.text
    assert not is_signed_in(browser)


@pytest.mark.parametrize(
    "forge",
    [
        lambda cookie: cookie.replace(cookie[-27:], cookie[-27:].swapcase()),
        lambda cookie: "x" + cookie,
        lambda cookie: cookie.rpartition(".")[0],
        lambda cookie: "nonsense",
        lambda cookie: "",
        lambda cookie: "." * 100,
    ],
    ids=["another signature", "another content", "no signature", "nonsense", "empty", "dots"],
)
def test_a_forged_cookie_is_none(door: Door, forge: Callable[[str], str]) -> None:
    browser = door.browser()
    sign_in(browser, door.tokens["admin"])
    forged = forge(browser.cookies[COOKIE])
    assert door.browser().get("/", headers={"Cookie": f"{COOKIE}={forged}"}).status_code == 303


def test_a_cookie_of_another_process_is_none(door: Door, shared_url: str) -> None:
    browser = door.browser()
    sign_in(browser, door.tokens["read"])
    with client_of(build_app(settings(shared_url, API_TOKENS_FILE=str(door.file)))) as after_a_restart:
        after_a_restart.cookies.set(COOKIE, browser.cookies[COOKIE])
        assert after_a_restart.get("/", follow_redirects=False).status_code == 303


def test_a_cookie_expires(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = door.browser()
    sign_in(browser, door.tokens["read"])
    assert is_signed_in(browser)
    monkeypatch.setattr(session, "SESSION_S", -1)
    assert not is_signed_in(browser)


def test_a_revoked_token_ends_what_was_begun_with_it(door: Door) -> None:
    browsers = {role: door.browser() for role in door.tokens}
    for role, browser in browsers.items():
        sign_in(browser, door.tokens[role])
    lines = door.file.read_text().splitlines()
    door.file.write_text("\n".join(line for line in lines if " write " not in line))
    assert {role: is_signed_in(browser) for role, browser in browsers.items()} == {
        "read": True,
        "write": False,
        "admin": True,
    }


def revoke(path: str, visit: Visit) -> None:
    """Take every token out of the file."""
    Path(path).write_text("", encoding="utf-8")


def sign_out(path: str, visit: Visit) -> None:
    """End the visitor's session."""
    visit.site.visitors.sign_out(visit.visitor)


@pytest.mark.parametrize("end", [revoke, sign_out])
async def test_a_revoked_token_or_signing_out_ends_the_stream(
    shared_url: str, tokens: Callable[[], tuple[str, dict[str, str]]], end: Callable[[str, Visit], None]
) -> None:
    path, known = tokens()
    app = build_app(settings(shared_url, API_TOKENS_FILE=path, DAEMON_URLS="none"))
    async with app.router.lifespan_context(app):
        site = app.state.site
        visitor = site.visitors.sign_in(known["read"])
        request = Request({"type": "http", "headers": [(b"cookie", f"{COOKIE}={visitor.session}".encode())]})
        visit = Visit(site, request, visitor)
        events = fleet.follow(visit, anyio.Event())
        assert (await anext(events)).event == "parts"
        await asyncio.to_thread(end, path, visit)
        with pytest.raises(StopAsyncIteration):
            await anext(events)


def test_a_session_opens_the_page_of_the_api_and_no_route_for_programs(door: Door) -> None:
    browser = door.signed_in("read")
    assert browser.get("/docs").status_code == 200
    assert browser.get("/v1/meters").status_code == 401


def test_who_signs_out_is_forgotten_by_the_browser(door: Door) -> None:
    browser = door.browser()
    sign_in(browser, door.tokens["read"])
    answer = browser.post("/sign-out", data={"form_key": form_key(browser, "/")})
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert COOKIE not in browser.cookies
    assert not is_signed_in(browser)


def test_a_copy_of_the_cookie_is_worth_nothing_once_its_owner_has_signed_out(door: Door) -> None:
    browser, other = door.signed_in("admin"), door.signed_in("admin")
    copy = {"Cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}
    assert door.browser().get("/", headers=copy).status_code == 200
    browser.post("/sign-out", data={"form_key": form_key(browser, "/")})
    for path, status in (("/", 303), ("/live", 401), ("/devices", 401), ("/docs", 401), ("/links", 303)):
        assert door.browser().get(path, headers=copy).status_code == status
    assert is_signed_in(other)


def test_a_cookie_that_was_signed_out_is_not_taken_for_signing_in(door: Door) -> None:
    browser = door.signed_in("read")
    ended = browser.cookies[COOKIE]
    browser.post("/sign-out", data={"form_key": form_key(browser, "/")})
    stranger = door.browser()
    stranger.get("/sign-in", headers={"Cookie": f"{COOKIE}={ended}"})
    assert stranger.cookies[COOKIE] != ended


def test_of_those_who_signed_out_the_oldest_are_forgotten_first(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "ENDED_MAX", 2)
    copies = []
    for _ in range(3):
        browser = door.signed_in("read")
        copies.append({"Cookie": f"{COOKIE}={browser.cookies[COOKIE]}"})
        browser.post("/sign-out", data={"form_key": form_key(browser, "/")})
    assert [door.browser().get("/", headers=copy).status_code for copy in copies] == [200, 303, 303]


def test_who_signed_out_is_remembered_no_longer_than_the_cookie_is_good() -> None:
    ended, now = Ended(), datetime.now(UTC)
    ended.add("over", now - timedelta(seconds=1))
    ended.add("good", now + timedelta(hours=1))
    assert "good" in ended
    ended.add("another", now + timedelta(hours=1))
    assert (len(ended), "over" in ended) == (2, False)


# Forms.


def test_the_form_of_another_visitor_is_not_taken(door: Door) -> None:
    mine, theirs = door.browser(), door.browser()
    for browser in (mine, theirs):
        sign_in(browser, door.tokens["read"])
    answer = mine.post("/sign-out", data={"form_key": form_key(theirs, "/")})
    assert answer.status_code == 403
    assert "not sent from a page of this site" in answer.text
    assert is_signed_in(mine)


@pytest.mark.parametrize("key", [None, "", "nonsense", "ü", "\udcff".encode("utf-8", "surrogateescape")])
def test_a_form_without_its_key_is_not_taken(door: Door, key: str | bytes | None) -> None:
    browser = door.browser()
    sign_in(browser, door.tokens["read"])
    body = b"" if key is None else b"form_key=" + (key if isinstance(key, bytes) else key.encode())
    answer = browser.post("/sign-out", content=body, headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 403
    assert is_signed_in(browser)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_form_that_the_browser_says_is_from_elsewhere_is_not_taken(door: Door, site: str) -> None:
    browser = door.browser()
    headers = {"Sec-Fetch-Site": site}
    assert sign_in(browser, door.tokens["read"], headers).status_code == 403
    assert not is_signed_in(browser)
    assert sign_in(browser, door.tokens["read"], {"Sec-Fetch-Site": "same-origin"}).status_code == 303


def test_a_form_of_another_media_type_or_of_too_many_fields_is_not_taken(door: Door) -> None:
    browser = door.browser()
    key = form_key(browser, "/sign-in")
    assert browser.post("/sign-in", json={"form_key": key}).status_code == 415
    answer = browser.post("/sign-in", data={"form_key": key} | {f"field{n}": "x" for n in range(50)})
    assert answer.status_code == 422
    assert "too many fields" in answer.text


def test_without_tokens_there_is_nobody_to_sign_in_or_out(shared_url: str) -> None:
    with client_of(build_app(settings(shared_url))) as browser:
        assert browser.get("/sign-in", follow_redirects=False).headers["location"] == "/"
        assert browser.post("/sign-out", data={"form_key": "nonsense"}).status_code == 403
        assert "Sign out" not in browser.get("/").text


# Where one wanted to go.


@pytest.mark.parametrize("page", ["/", "/?kind=meter&begins=m-1", "/sign-in?next=/", "/a%20b"])
def test_signing_in_leads_to_where_one_wanted_to_go(door: Door, page: str) -> None:
    assert sign_in(door.browser(), door.tokens["read"], next=page).headers["location"] == page


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "\\\\evil.example",
        "/\t/evil.example/",
        "\n//evil.example/",
        "javascript:alert(1)",
        "evil.example",
        "///evil.example",
        "http:evil.example",
        "/\r\nSet-Cookie: a=b",
        "//[",
        "",
    ],
)
def test_signing_in_leads_nowhere_else(door: Door, elsewhere: str) -> None:
    answer = sign_in(door.browser(), door.tokens["read"], next=elsewhere)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    signed_in = door.browser()
    sign_in(signed_in, door.tokens["read"])
    assert signed_in.get("/sign-in", params={"next": elsewhere}).headers["location"] == "/"
