"""A real Chromium before a real sidecar. Where there is none its tests are skipped; `make browser` installs one."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright, expect
from starlette.testclient import TestClient

from api.app import build_app
from dev.browser import FLAGS, find_chromium
from dev.fleet import Fleet
from dev.postgres import PrivatePostgres
from tests.api.conftest import client, client_of, settings, tokens
from tests.api.server import sidecar
from tests.conftest import TEMPLATE
from tests.tokens import write_tokens
from tests.web.people import Door
from tests.web.place import VEHICLES, Guarded, Place, open_place, settle_in
from tests.web.tabs import PATIENCE_MS, Tabs

__all__ = ["client", "tokens"]


@pytest.fixture(scope="session")
def chromium() -> str:
    """Its path."""
    found = find_chromium()
    if found is None:  # as on a machine with Python, git and make alone; .ci/run installs it and skips nothing here
        pytest.skip("there is no Chromium here; `make browser` installs it or says how")
    return found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """One for all tests of the process. They share its event loop, since Playwright's objects belong to one."""
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def tabs(browser: Browser) -> AsyncIterator[Tabs]:
    """Opens pages; the test fails if anything is wrong with one of them meanwhile."""
    tabs = Tabs(browser)
    yield tabs
    faults = tabs.faults
    await tabs.close()
    assert faults == []


@pytest.fixture(scope="session")
def place(chromium: str, postgres: PrivatePostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """What the tests look at: a small fleet, whose last day is stored."""
    postgres.create_database("pages", TEMPLATE)
    with open_place(tmp_path_factory.mktemp("place"), postgres.url("pages")) as place:
        asyncio.run(settle_in(place.house, Fleet(VEHICLES)))
        yield place


@pytest.fixture(scope="session")
def guarded(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A second sidecar on the same database, for those who have a token."""
    folder = tmp_path_factory.mktemp("guarded")
    path, tokens = write_tokens(folder)
    with sidecar(folder, place.database_url, API_TOKENS_FILE=path, DAEMON_URLS="none") as found:
        yield Guarded(found.url, tokens)


# Without a browser.


@pytest.fixture(scope="module")
def site(shared_url: str) -> Iterator[TestClient]:
    """A client of a sidecar that wants no tokens, on a database without readings."""
    with client_of(build_app(settings(shared_url))) as client:
        yield client


@pytest.fixture
def door(shared_url: str, tmp_path: Path) -> Iterator[Door]:
    """A sidecar that wants tokens, on the same database."""
    with Door(shared_url, tmp_path) as door:
        yield door


# A browser as far as most tests of the pages need one.


class _Inputs(HTMLParser):
    """The fields of a page, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dict[str, str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One element."""
        attributes = {name: value or "" for name, value in attrs}
        if tag == "input" and "name" in attributes and "id" in attributes:
            self.found[attributes["name"]] = attributes


def fields(page: httpx2.Response) -> dict[str, dict[str, str]]:
    """The attributes of the fields that have a label of their own."""
    parser = _Inputs()
    parser.feed(page.text)
    return parser.found


def words(page: httpx2.Response) -> str:
    """What a page says, without its elements."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page.text)))


def form_key(client: TestClient, path: str) -> str:
    """That of a page's forms."""
    found = re.search(r'name="form_key" value="([^"]+)"', client.get(path).text)
    assert found, f"{path} has no form"
    return found[1]


def send(client: TestClient, path: str, data: dict[str, str], *, page: str, **options: Any) -> httpx2.Response:
    """Send a form of a page."""
    return client.post(path, data={"form_key": form_key(client, page), **data}, follow_redirects=False, **options)


def sign_in(client: TestClient, token: str) -> None:
    """As whoever has the token."""
    assert send(client, "/sign-in", {"token": token}, page="/sign-in").status_code == 303
