"""Pages in a real browser, watched: what must not happen while one is open."""

import re
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Response, WebError

PATIENCE_MS = 30_000
"""Nothing here takes that long; it is how long a busy machine is given."""
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1440, "height": 900}
ENERGY = re.compile(r"^(?!0\u00a0)[0-9.\u202f]+\u00a0kWh$")
"""An amount of energy that is more than nothing."""
LEFT = "net::ERR_ABORTED"
"""What becomes of a stream, or of a request under way, when the page is left."""


async def enter_token(page: Page, token: str) -> None:
    """Fill in the form to sign in."""
    await page.get_by_label("Your token").fill(token)
    await page.get_by_role("button", name="Sign in").click()


class Tabs:
    """Opens pages, each for a visitor of its own, and remembers what browsers complain of.

    Faults are errors and warnings on the console (among them violations of the content security policy), errors that
    no script caught, requests to elsewhere, requests without an answer, and answers of 500 and above.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self._faults: list[str] = []
        self._expected: list[str] = []

    async def open(self, url: str, **options: Any) -> Page:
        """A page; `options` are those of Playwright's new_context."""
        context = await self._browser.new_context(**{"locale": "en-GB", "viewport": DESKTOP, **options})
        self._contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        self._watch(context, "{0.scheme}://{0.netloc}/".format(urlsplit(url)))
        page = await context.new_page()
        await page.goto(url)
        return page

    def expect(self, pattern: str) -> None:
        """Faults in which this is found are what the test brings about."""
        self._expected.append(pattern)

    @property
    def faults(self) -> list[str]:
        """What happened and was not expected."""
        return [fault for fault in self._faults if not any(re.search(pattern, fault) for pattern in self._expected)]

    async def close(self) -> None:
        """Close all of them."""
        for context in self._contexts:
            await context.close()

    def _watch(self, context: BrowserContext, origin: str) -> None:
        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self._faults.append(f"the console says: {message.text} ({message.location.get('url')})")

        def on_error(error: WebError) -> None:
            self._faults.append(f"nobody caught: {error.error}")

        def on_request(request: Request) -> None:
            if not request.url.startswith((origin, "data:")):
                self._faults.append(f"a request went to {request.url}")

        def on_failure(request: Request) -> None:
            if request.failure != LEFT or request.resource_type not in ("eventsource", "fetch"):
                self._faults.append(f"no answer: {request.method} {request.url}: {request.failure}")

        def on_response(response: Response) -> None:
            if response.status >= 500:
                self._faults.append(f"{response.status}: {response.request.method} {response.url}")

        context.on("console", on_console)
        context.on("weberror", on_error)
        context.on("request", on_request)
        context.on("requestfailed", on_failure)
        context.on("response", on_response)
