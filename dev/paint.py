"""`python -m dev paint`: how long the first page takes in a browser, and how many bytes it is.

Each run is a browser without anything in its cache, then the same page again with what it has kept. The first paint and
the time of the whole page are the browser's own figures; the figures of the fleet are in the page as it comes, so
nothing has to be waited for after it.
"""

import statistics
from collections import defaultdict

from playwright.async_api import Browser, Page, async_playwright
from rich.console import Console
from rich.table import Table

from dev.browser import FLAGS, find_chromium

_FIGURES = """async () => {
    const paint = await new Promise((resolve) => new PerformanceObserver((list) => {
        for (const entry of list.getEntriesByName("first-contentful-paint")) resolve(entry.startTime);
    }).observe({ type: "paint", buffered: true }));
    const [page] = performance.getEntriesByType("navigation");
    const all = [page, ...performance.getEntriesByType("resource")];
    return {
        "first byte, ms": page.responseStart,
        "first paint, ms": paint,
        "all loaded, ms": page.loadEventEnd,
        "bytes": all.reduce((sum, one) => sum + one.transferSize, 0),
    };
}"""


class PaintError(Exception):
    """There is no browser, or no page."""


async def paint(api_url: str, path: str, runs: int) -> None:
    """Load the page so often, and print medians."""
    executable = find_chromium()
    if executable is None:
        raise PaintError("there is no chromium here; make browser installs it")
    figures: dict[str, dict[str, list[float]]] = {"first visit": defaultdict(list), "again": defaultdict(list)}
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=FLAGS)
        for _ in range(runs):
            await _visit_twice(browser, api_url + path, figures)
        await browser.close()
    table = Table("", *figures)
    for name in figures["again"]:
        medians = (statistics.median(visit[name]) for visit in figures.values())
        table.add_row(name, *(f"{median:,.0f}" for median in medians))
    Console().print(table)


async def _visit_twice(browser: Browser, url: str, figures: dict[str, dict[str, list[float]]]) -> None:
    context = await browser.new_context()
    page = await context.new_page()
    for visit in figures.values():
        for name, value in (await _load(page, url)).items():
            visit[name].append(value)
    await context.close()


async def _load(page: Page, url: str) -> dict[str, float]:
    answer = await page.goto(url, wait_until="load")
    if answer is None or answer.status != 200:
        raise PaintError(f"{url} answers {answer.status if answer else 'nothing'}")
    return {name: float(value) for name, value in (await page.evaluate(_FIGURES)).items()}
