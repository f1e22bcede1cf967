"""A browser as far as the pages need one: it keeps the cookie, and it sends a form with what is hidden in it."""

import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import httpx2
from starlette.testclient import TestClient

from tests.api.conftest import client, tokens

__all__ = ["client", "tokens"]


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
