"""The pages of devices, links and rejections, in a real browser, on a real stack."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from playwright.async_api import Page, expect

from tests.web.looks import SCHEMES, check_looks
from tests.web.place import LEAKY, UNLINKED, Guarded, Place
from tests.web.tabs import ENERGY, Tabs, enter_token

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOSTILE = "</pre></code><script>window.ran = 1</script><img src=x onerror=alert(1)>"
PAGES = {
    "vehicle": (f"/vehicles/{LEAKY}", "[data-chart=temperature] [data-summary]"),
    "meter": ("/meters/meter-0002", "[data-chart=voltage] [data-summary]"),
    "links": ("/links", "#links tbody tr >> nth=0"),
    "rejections": ("/rejections", "main details summary >> nth=0"),
    "unknown": ("/vehicles/nobody", "h1"),
}
"""By name: where a page is, and what is seen there once it is complete."""


@asynccontextmanager
async def rejected(place: Place, payload: bytes) -> AsyncIterator[None]:
    """A rejection in the database, whose topic and reason no device could bring about."""
    connection = await asyncpg.connect(place.database_url)
    await connection.execute(
        "INSERT INTO rejection (received_at, topic, reason, detail, payload) VALUES (now(), $1, 'bad_topic', $1, $2)",
        HOSTILE,
        payload,
    )
    yield
    await connection.execute("DELETE FROM rejection WHERE topic = $1", HOSTILE)
    await connection.close()


async def pair(page: Page, vehicle_id: str, meter_id: str, since: datetime) -> None:
    """Fill in the form of links and send it."""
    await page.get_by_label("Vehicle", exact=True).first.fill(vehicle_id)
    await page.get_by_label("Meter", exact=True).first.fill(meter_id)
    await page.get_by_label("From (UTC)").fill(f"{since.astimezone(UTC):%Y-%m-%d %H:%M}")
    await page.get_by_role("button", name="Pair", exact=True).click()


# Devices.


async def test_a_leaky_vehicle_is_a_click_away_from_the_first_page(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url)
    await page.locator("#worst tbody tr").first.get_by_role("link").click()
    await expect(page).to_have_url(f"{place.url}/vehicles/{LEAKY}")
    await expect(page.locator("dd .verdict")).to_have_text("low efficiency")
    await expect(page.locator(".figure strong")).to_have_text(ENERGY)


@pytest.mark.parametrize("path", [f"/vehicles/{LEAKY}", "/meters/meter-0002"])
async def test_each_chart_is_drawn_and_said_in_words_and_numbers(tabs: Tabs, place: Place, path: str) -> None:
    page = await tabs.open(place.url + path)
    charts = page.locator("[data-chart]")
    for number in range(await charts.count()):
        await expect(charts.nth(number).locator("[data-summary]")).not_to_be_empty()
    await page.get_by_text("The charts as a table").click()
    await expect(page.locator("#numbers tbody tr").first).to_be_visible()


async def test_without_javascript_a_vehicle_has_its_figures(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(f"{place.url}/vehicles/{LEAKY}", java_script_enabled=False)
    await expect(page.locator("dd .verdict")).to_have_text("low efficiency")
    await expect(page.locator(".figure strong")).to_have_text(ENERGY)
    await expect(page.locator("noscript p")).to_be_visible()


async def test_another_window_is_asked_for_by_its_times(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(f"{place.url}/meters/meter-0002")
    await page.get_by_role("link", name="7 days").click()
    await expect(page.get_by_role("link", name="7 days")).to_have_attribute("aria-current", "true")
    await expect(page.locator(".figure strong")).to_have_text(ENERGY)


async def test_a_device_that_nobody_knows_is_said_to_be_unknown(tabs: Tabs, place: Place) -> None:
    tabs.expect("status of 404")
    page = await tabs.open(f"{place.url}/vehicles/nobody")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Nobody knows this vehicle")


# Links.


async def test_pairing_by_the_form_changes_what_the_vehicle_lost(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(f"{place.url}/vehicles/{UNLINKED}")
    await expect(page.locator("dd .verdict")).to_have_text("unlinked")
    await page.goto(f"{place.url}/links")
    await pair(page, UNLINKED, UNLINKED.replace("vehicle", "meter"), datetime.now(UTC) - timedelta(hours=25))
    await expect(page.get_by_role("status")).to_contain_text("The two are paired")
    await page.locator("#links").get_by_role("link", name=UNLINKED, exact=True).click()
    await expect(page.locator("dd .verdict")).not_to_have_text("unlinked")
    await expect(page.locator(".figure strong")).to_have_text(ENERGY)


async def test_what_is_wrong_with_a_pairing_is_said_beside_it_and_nothing_is_lost(tabs: Tabs, place: Place) -> None:
    tabs.expect("status of 422")
    page = await tabs.open(f"{place.url}/links")
    await pair(page, LEAKY, "meter-0002", datetime.now(UTC) + timedelta(days=2))
    since = page.get_by_label("From (UTC)")
    await expect(since).to_have_attribute("aria-invalid", "true")
    await expect(page.get_by_role("alert")).not_to_be_empty()
    await expect(page.get_by_label("Vehicle", exact=True).first).to_have_value(LEAKY)


# Rejections.


async def test_rejections_are_grouped_by_reason_and_device(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(f"{place.url}/rejections")
    sort = page.get_by_role("region", name="Malformed json").last
    await expect(sort.get_by_role("link", name="vehicle-0007")).to_be_visible()


@pytest.mark.parametrize("payload", [HOSTILE.encode(), b"\xff\x00\x1b[31m" + HOSTILE.encode()], ids=["text", "bytes"])
async def test_what_a_hostile_device_sent_is_shown_and_does_nothing(tabs: Tabs, place: Place, payload: bytes) -> None:
    async with rejected(place, payload):
        page = await tabs.open(f"{place.url}/rejections?reason=bad_topic")
        await page.locator("summary").filter(has_text="onerror").first.click()
        await expect(page.locator("main details code").first).to_have_text(HOSTILE)
        assert await page.locator("main img, main script").count() == 0
        assert await page.evaluate("window.ran") is None


# Who may do what.


@pytest.mark.parametrize("path", ["/links", "/rejections"])
async def test_a_reader_sees_no_forms_that_change_anything(tabs: Tabs, guarded: Guarded, path: str) -> None:
    forms = {}
    for role in ("read", "admin"):
        page = await tabs.open(guarded.url + path)
        await enter_token(page, guarded.tokens[role])
        await expect(page.get_by_role("button", name=f"Sign out a-{role}")).to_be_visible()
        await expect(page).to_have_url(guarded.url + path)
        forms[role] = await page.locator("main form[method=post]").count()
    assert forms["read"] == 0
    assert forms["admin"] > 0


# How they look.


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", PAGES)
async def test_a_page_fits_and_axe_finds_nothing_grave(tabs: Tabs, place: Place, name: str, scheme: str) -> None:
    tabs.expect("status of 404")
    path, last = PAGES[name]
    page = await tabs.open(place.url + path, color_scheme=scheme)
    await expect(page.locator(last)).not_to_be_empty()
    await check_looks(page, name, scheme)
