"""The pages of devices, links and rejections, in a real browser, on a real stack."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import asyncpg
import httpx2
import pytest
from playwright.async_api import Page, expect

from tests.api.server import sidecar
from tests.web.looks import SCHEMES, check_looks
from tests.web.place import LEAKY, LONG, UNLINKED, Guarded, Place
from tests.web.tabs import ENERGY, PHONE, Tabs, enter_token

pytestmark = pytest.mark.asyncio(loop_scope="session")

DAY = timedelta(days=1)
HOSTILE = "</pre></code><script>window.ran = 1</script><img src=x onerror=alert(1)>"
PAGES = {
    "vehicle": (f"/vehicles/{LEAKY}", "[data-chart=temperature] [data-summary]"),
    "meter": ("/meters/meter-0002", "[data-chart=voltage] [data-summary]"),
    "vehicle-long": (f"/vehicles/{LONG}", "[data-chart=temperature] [data-summary]"),
    "meter-long": (f"/meters/{LONG}", "[data-chart=voltage] [data-summary]"),
    "links-all": ("/links?show=all", "#links tbody tr >> nth=0"),
    "links": ("/links", "#links tbody tr >> nth=0"),
    "rejections": ("/rejections", "main details summary >> nth=0"),
    "unknown": ("/vehicles/nobody", "h1"),
}
"""By name: where a page is, and what is seen there once it is complete."""


TICKS = "() => Object.values(Chart.instances)[0].scales.x.ticks.map((tick) => tick.value)"
TITLES = """() => {
    const { data, options } = Object.values(Chart.instances)[0];
    return data.datasets[0].data.map((raw) => options.plugins.tooltip.callbacks.title([{ raw }]));
}"""
"""What is said of each step where one points at it."""


async def send_hours(url: str, start: datetime, end: datetime) -> None:
    """A vehicle that gets 0.9 of the 1 kWh that its meter counts each hour."""
    moments = [start + n * timedelta(minutes=5) for n in range((end - start) // timedelta(minutes=5))]
    meter = [{"meterId": "m", "kwhConsumedAc": 1 / 12, "voltage": 230, "timestamp": at.isoformat()} for at in moments]
    vehicle = [
        {"vehicleId": "v", "soc": 50, "kwhDeliveredDc": 0.075, "batteryTemp": 20, "timestamp": at.isoformat()}
        for at in moments
    ]
    async with httpx2.AsyncClient(base_url=url) as client:
        link = {"vehicleId": "v", "meterId": "m", "validFrom": start.isoformat()}
        for path, body in (("/v1/ingest", meter + vehicle), ("/v1/links", link)):
            assert (await client.post(path, json=body)).status_code == 201


async def open_charts(tabs: Tabs, url: str, start: datetime, end: datetime, zone: str) -> Page:
    """The page of that vehicle, drawn."""
    window = urlencode({"from": start.isoformat(), "to": end.isoformat()})
    page = await tabs.open(f"{url}/vehicles/v?{window}", timezone_id=zone)
    await expect(page.locator("#numbers")).to_be_visible()
    return page


@asynccontextmanager
async def rejected(place: Place, payload: bytes) -> AsyncIterator[None]:
    """A rejection in the database, whose topic and reason no device could bring about."""
    connection = await asyncpg.connect(place.database_url)
    try:
        await connection.execute(
            "INSERT INTO rejection (received_at, topic, reason, detail, payload) "
            "VALUES (now(), $1, 'bad_topic', $1, $2)",
            HOSTILE,
            payload,
        )
        yield
    finally:
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


@pytest.mark.parametrize(
    ("day", "zone", "hours", "title"),
    [
        (date(2025, 3, 30), "Europe/Berlin", 23, "30 Mar, 01:45 CET – 30 Mar, 03:00 CEST"),
        (date(2025, 10, 26), "Europe/Berlin", 25, "26 Oct, 02:45 CEST – 26 Oct, 02:00 CET"),
        (date(2025, 3, 9), "America/New_York", 23, "9 Mar, 01:45 GMT-5 – 9 Mar, 03:00 GMT-4"),
        (date(2025, 11, 2), "America/New_York", 25, "2 Nov, 01:45 GMT-4 – 2 Nov, 01:00 GMT-5"),
        (date(2025, 7, 1), "Europe/Berlin", 24, "1 Jul, 01:45–02:00"),
    ],
)
async def test_a_day_on_which_clocks_are_moved_has_each_of_its_hours_once(
    tabs: Tabs, database_url: str, tmp_path: Path, day: date, zone: str, hours: int, title: str
) -> None:
    midnights = [datetime.combine(day + n * DAY, time(), ZoneInfo(zone)).astimezone(UTC) for n in (-1, 0, 1, 2)]
    with sidecar(tmp_path, database_url, RETENTION_DAYS="0", DAEMON_URLS="none") as served:
        await send_hours(served.url, midnights[0], midnights[-1])

        page = await open_charts(tabs, served.url, midnights[1], midnights[2], zone)

        rows = page.locator("#numbers tbody tr")
        begins = await rows.locator("th").all_text_contents()
        assert len(set(begins)) == len(begins) == hours
        assert set(await rows.locator("td:nth-child(2)").all_text_contents()) == {"1"}
        titles = await page.evaluate(TITLES)
        assert len(set(titles)) == len(titles) == hours * 4
        assert title in titles

        page = await open_charts(tabs, served.url, midnights[0], midnights[-1], zone)
        assert await page.evaluate(TICKS) == [moment.timestamp() * 1000 for moment in midnights]


async def test_a_device_that_nobody_knows_is_said_to_be_unknown(tabs: Tabs, place: Place) -> None:
    tabs.expect("status of 404")
    page = await tabs.open(f"{place.url}/vehicles/nobody")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Nobody knows this vehicle")


# The page of the API.


async def test_the_page_of_the_api_works_without_inline_styles(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(f"{place.url}/docs")
    meters = page.locator("#operations-Live_and_history-listMeters")
    await meters.locator(".opblock-summary-control").click()
    await meters.get_by_role("button", name="Execute").click()
    answer = meters.locator(".live-responses-table")
    await expect(answer.locator(".response-col_status").last).to_contain_text("200")
    await expect(answer.locator("pre").first).to_have_css("display", "block")


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


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without"])
async def test_a_link_that_was_a_mistake_is_removed_once_that_is_confirmed(
    tabs: Tabs, place: Place, scripts: bool
) -> None:
    page = await tabs.open(f"{place.url}/links", java_script_enabled=scripts)
    await pair(page, "vehicle-mistaken", "meter-mistaken", datetime.now(UTC) - timedelta(hours=1))
    link = page.locator("#links tbody tr").filter(has_text="vehicle-mistaken")
    await link.get_by_role("link", name="Remove").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Remove a link of vehicle-mistaken?")
    await page.get_by_role("link", name="Leave it as it is").click()
    await expect(link).to_have_count(1)
    await link.get_by_role("link", name="Remove").click()
    await page.get_by_role("button", name="Remove").click()
    await expect(page.get_by_role("status")).to_contain_text("The link is removed")
    await expect(page.get_by_text("vehicle-mistaken has no link.")).to_be_visible()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("what", ["Correct", "Remove"])
async def test_changing_a_link_fits_and_axe_finds_nothing_grave(
    tabs: Tabs, place: Place, what: str, scheme: str
) -> None:
    page = await tabs.open(f"{place.url}/links?vehicleId={LONG}", color_scheme=scheme)
    await page.locator("#links tbody tr").get_by_role("link", name=what).click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text(f"{what} a link")
    await check_looks(page, f"{what.lower()}-link", scheme)


async def test_on_a_phone_a_link_can_be_changed_without_scrolling_sideways(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(f"{place.url}/links?vehicleId={LEAKY}", viewport=PHONE)
    row = page.get_by_role("table").get_by_role("row").filter(has_text=LEAKY)
    for control in (
        row.get_by_role("link", name="Correct"),
        row.get_by_role("button", name="End now"),
        row.get_by_role("link", name="Remove"),
    ):
        await control.scroll_into_view_if_needed()
        await expect(control).to_be_in_viewport(ratio=1)
    await expect(row.get_by_role("cell", name="meter-0002", exact=True)).to_be_visible()
    assert await page.locator(".scroll").evaluate("(scroll) => scroll.scrollWidth <= scroll.clientWidth")


async def test_on_a_phone_a_table_that_goes_on_sideways_has_a_shadow_there(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url, viewport=PHONE)
    table = page.locator("#table .scroll")
    assert await table.evaluate("(scroll) => scroll.scrollWidth > scroll.clientWidth")
    assert "radial-gradient" in await table.evaluate("(scroll) => getComputedStyle(scroll).backgroundImage")


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
