"""What every page is looked at for: pictures of it, whether it fits a phone, and what axe finds."""

import asyncio
from pathlib import Path
from typing import Literal

from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import Page

from tests.web.tabs import DESKTOP, PHONE

SCREENSHOTS = Path(__file__).parents[2] / ".fleetwatt" / "screenshots"
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
GRAVE = ("moderate", "serious", "critical")
AXE = "axe.run({resultTypes: ['violations']}).then(found => found.violations)"
WIDTH = "() => document.scrollingElement.scrollWidth"


async def check_looks(page: Page, name: str, scheme: str) -> None:
    """Leave a picture for phones and one for desktops, and find nothing that is wrong with what is on them."""
    await asyncio.to_thread(SCREENSHOTS.mkdir, parents=True, exist_ok=True)
    for device, size in (("desktop", DESKTOP), ("phone", PHONE)):
        await page.set_viewport_size(size)  # type: ignore[arg-type]  # playwright has a type of its own for two numbers
        await page.screenshot(path=SCREENSHOTS / f"{name}-{device}-{scheme}.png", full_page=True)
        assert await page.evaluate(WIDTH) <= size["width"], f"{name} is wider than a {device}"
        assert await axe_violations(page) == []


async def axe_violations(page: Page) -> list[str]:
    """What axe calls more than minor: the rule, and where."""
    await page.evaluate(AXE_SCRIPT)
    return [
        f"{found['id']}: {found['help']}: {node['target']}"
        for found in await page.evaluate(AXE)
        if found["impact"] in GRAVE
        for node in found["nodes"]
    ]
