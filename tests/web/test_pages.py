"""What holds for every page: its headers, who may see it, and what becomes of errors."""

import gzip
import re
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from api import web
from api.auth import Role
from api.web import fleet
from api.web.pages import SIGN_IN, Page, Visit
from api.web.site import PAGES
from tests.api.conftest import check_problem
from tests.web.people import Door, form_key

TEMPLATES = sorted((Path(web.__file__).parent / "templates").rglob("*.html"))


def named(page: Page) -> str:
    """For the names of tests."""
    return f"{page.method} {page.path}"


def ask(browser: TestClient, page: Page) -> httpx2.Response:
    """For a page; with HEAD, since a stream has no end."""
    path = re.sub("{.*?}", "v-1", page.path)
    return browser.post(path, data={}) if page.method == "POST" else browser.head(path)


def check_security(answer: httpx2.Response) -> None:
    """Whether a browser is told to run nothing but our files, and to keep the page to itself."""
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"


def test_the_page_of_the_api_allows_nothing_inline(site: TestClient) -> None:
    for path in ("/docs", "/docs/start.js", "/docs/swagger-ui-bundle.js"):
        policy = site.get(path).headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
        assert "unsafe" not in policy


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_answers_and_lets_only_our_files_in(site: TestClient, page: Page) -> None:
    answer = ask(site, page)
    assert answer.status_code < 500
    if answer.headers.get("content-type", "").startswith("text/html"):
        check_security(answer)


@pytest.mark.parametrize("page", [page for page in PAGES if page.role is not None], ids=named)
def test_a_stranger_sees_no_page_but_the_way_in(door: Door, page: Page) -> None:
    answer = ask(door.browser(), page)
    if page.method == "POST" or page.is_for_scripts:
        assert answer.status_code == 401
    else:
        assert answer.status_code == 303
        assert answer.headers["location"].startswith(f"{SIGN_IN}?next=/")


@pytest.mark.parametrize("page", [page for page in PAGES if page.role is not None], ids=named)
def test_a_page_is_for_those_whose_role_suffices(door: Door, page: Page) -> None:
    assert page.role
    for role in Role:
        answer = ask(door.signed_in(role.name), page)
        assert answer.status_code not in (401, 500)
        is_refused = "takes a token of the role" in answer.text or (answer.status_code == 403 and page.method == "GET")
        assert is_refused == (role < page.role)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_template_has_nothing_that_the_policy_would_stop(template: Path) -> None:
    text = template.read_text(encoding="utf-8")
    assert not re.findall(r"\s(?:style|on[a-z]+)=", text)
    assert not re.findall(r"<style|<script(?![^>]*\ssrc=)|javascript:|\|\s*safe\b", text)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_form_that_is_posted_carries_its_key(template: Path) -> None:
    for form in re.findall(r'<form[^>]*method="post".*?</form>', template.read_text(encoding="utf-8"), re.DOTALL):
        assert '<input type="hidden" name="form_key" value="{{ visitor.form_key }}">' in form


def test_where_a_script_asks_a_stranger_gets_a_problem_document(door: Door) -> None:
    for path in ("/live", "/devices"):
        assert "not signed in" in check_problem(door.browser().get(path), 401)["detail"]


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/find?id=nobody", 404, "No vehicle and no meter has an id that begins with nobody"),
        ("/find", 422, "id"),
        ("/?kind=boat", 422, "kind"),
        ("/?begins=%3Cimg%20src%3Dx%3E", 422, "begins"),
        ("/?nonsense=1", 422, "nonsense"),
    ],
)
def test_an_error_is_a_page_with_its_status(site: TestClient, path: str, status: int, said: str) -> None:
    answer = site.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert said in answer.text
    assert "<img" not in answer.text
    assert '<a href="/">Go to the fleet</a>' in answer.text
    check_security(answer)


def test_an_error_is_a_problem_document_for_a_script(site: TestClient) -> None:
    check_problem(site.get("/devices?kind=boat"), 422)


def test_a_method_that_a_page_does_not_have_is_refused(site: TestClient) -> None:
    assert "allowed: GET, HEAD" in check_problem(site.put("/"), 405)["detail"]


def test_a_bug_is_a_page_that_tells_nothing_of_the_inside(site: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(visit: Visit, chosen: fleet.Chosen) -> None:
        raise RuntimeError("password=secret")

    monkeypatch.setattr(fleet, "_devices", fail)
    answer = site.get("/")
    assert answer.status_code == 500
    assert f"the log has it under the request id {answer.headers['x-request-id']}" in answer.text
    assert "secret" not in answer.text
    check_security(answer)
    assert "secret" not in check_problem(site.get("/devices"), 500)["detail"]


def test_head_has_the_headers_of_the_page_and_no_body(site: TestClient) -> None:
    shown, headed = site.get("/"), site.head("/")
    assert (shown.status_code, headed.status_code, headed.content) == (200, 200, b"")
    for name in ("content-type", "content-security-policy", "content-encoding", "vary"):
        assert headed.headers[name] == shown.headers[name]
    stream = site.head("/live")
    assert (stream.status_code, stream.content) == (200, b"")
    assert stream.headers["content-type"].startswith("text/event-stream")


def test_a_page_comes_compressed_to_those_who_can_read_that(site: TestClient) -> None:
    with site.stream("GET", "/", headers={"Accept-Encoding": "gzip"}) as answer:
        compressed = b"".join(answer.iter_raw())
    plain = site.get("/", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert b"fleetwatt" in plain.content
    assert b"fleetwatt" in gzip.decompress(compressed)


def test_an_empty_house_says_what_to_do_next(site: TestClient) -> None:
    text = site.get("/").text
    assert "No vehicle has sent a reading yet" in text
    assert "vehicles/ID/reading" in text
    assert 'href="/links"' in text


def test_who_has_signed_in_is_named_and_can_leave(door: Door) -> None:
    browser = door.signed_in("read")
    assert "Sign out a-read" in browser.get("/").text
    assert form_key(browser, "/")


def test_where_nothing_is_people_get_a_page_and_programs_a_problem_document(site: TestClient) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml"}
    page = site.get("/nothing/here", headers=browser)
    assert page.status_code == 404
    assert "There is no such page" in page.text
    check_security(page)
    assert site.put("/links", headers=browser).headers["content-type"].startswith("text/html")
    check_problem(site.get("/nothing/here"), 404)
    check_problem(site.get("/v1/nothing", headers=browser), 404)
