"""People who sign in, without a browser: a sidecar within the test's process, and clients of it."""

import re
from pathlib import Path

import httpx2
from starlette.testclient import TestClient

from api.app import build_app
from tests.api.conftest import settings
from tests.tokens import write_tokens


class Door:
    """A sidecar that wants tokens; each client has cookies of its own."""

    def __init__(self, database_url: str, folder: Path) -> None:
        path, self.tokens = write_tokens(folder)
        self.file = Path(path)
        self.app = build_app(settings(database_url, API_TOKENS_FILE=path))
        self._running = TestClient(self.app)

    def __enter__(self) -> "Door":
        self._running.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._running.__exit__(*error)

    def browser(self) -> TestClient:
        """Somebody who comes for the first time."""
        browser = TestClient(
            self.app, base_url="http://localhost", follow_redirects=False, raise_server_exceptions=False
        )
        browser.portal = self._running.portal  # into the loop that the application's connections belong to
        return browser

    def signed_in(self, role: str) -> TestClient:
        """Somebody who has signed in with the token of this role."""
        browser = self.browser()
        assert sign_in(browser, self.tokens[role]).status_code == 303
        return browser


def form_key(browser: TestClient, page: str) -> str:
    """What the forms of a page carry."""
    found = re.search(r'name="form_key" value="([^"]+)"', browser.get(page).text)
    assert found
    return found[1]


def sign_in(browser: TestClient, token: str, headers: dict[str, str] | None = None, **fields: str) -> httpx2.Response:
    """Send the form."""
    data = {"token": token, "form_key": form_key(browser, "/sign-in"), **fields}
    return browser.post("/sign-in", data=data, headers=headers)
