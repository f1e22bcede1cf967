"""The first page and signing in, in a real browser, on a real stack."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from playwright.async_api import Browser, Locator, Page, expect

from dev.house import eventually
from tests.web.looks import SCHEMES, axe_violations, check_looks
from tests.web.place import LEAKY, VEHICLES, Guarded, Place
from tests.web.tabs import ENERGY, PHONE, Tabs, enter_token

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOSTILE = "\"><img src=x onerror=alert(1)>'{{7*7}}&lt;"
HIDE = """(is_hidden) => {
    Object.defineProperty(document, "hidden", { value: is_hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""
"""A browser without a window takes each of its pages for seen."""
READING = {"soc": 50, "kwhDeliveredDc": 0.1, "batteryTemp": 20}


def tile(page: Page, name: str) -> Locator:
    """The figure with this name."""
    return page.locator("#flow .tiles > div").filter(has_text=name).locator("dd")


async def known(page: Page, place: Place) -> int:
    """How many vehicles there are, once the page says so: its figures may be a second older than itself."""
    connection = await asyncpg.connect(place.database_url)
    try:
        count: int = await connection.fetchval("SELECT count(*) FROM vehicle_status")
    finally:
        await connection.close()
    await expect(tile(page, "Vehicles heard from")).to_contain_text(re.compile(rf"of {count}\b"))
    return count


@asynccontextmanager
async def stored(place: Place, vehicle_id: str) -> AsyncIterator[None]:
    """A vehicle in the database, with an id that no device can have: the page must not rely on that."""
    connection = await asyncpg.connect(place.database_url)
    try:
        await connection.execute(
            "INSERT INTO vehicle_status VALUES ($1, now(), 50, 0.1, 20, now() - interval '1 day')", vehicle_id
        )
        yield
    finally:
        await connection.execute("DELETE FROM vehicle_status WHERE vehicle_id = $1", vehicle_id)
        await connection.close()


async def listed(page: Page, url: str, name: str) -> None:
    """Wait until a table of devices has one: it may be a second old."""

    async def is_listed() -> bool:
        return name in await (await page.request.get(url)).text()

    await eventually(is_listed)


# The first page.


async def test_the_first_page_says_how_much_is_lost_and_who_was_heard_from(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url)
    await expect(page.get_by_role("heading", level=1)).to_have_text("Energy lost between meter and battery")
    await expect(page.locator(".figure strong")).to_have_text(ENERGY)
    await expect(tile(page, "Unaccounted")).to_have_text("0")
    assert await known(page, place) >= VEHICLES


async def test_the_vehicle_that_loses_the_most_comes_first(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url)
    worst = page.locator("#worst tbody tr").first
    await expect(worst.get_by_role("link")).to_have_text(LEAKY)
    await expect(worst).to_contain_text("low efficiency")


async def test_on_a_phone_no_figure_of_the_worst_is_out_of_sight(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url, viewport=PHONE)
    right_edges = await page.evaluate(
        "() => [...document.querySelectorAll('#worst td')].map((cell) => cell.getBoundingClientRect().right)"
    )
    assert len(right_edges) >= VEHICLES / 2
    assert max(right_edges) <= PHONE["width"]


async def test_a_reading_is_on_the_page_without_a_reload(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url)
    before = await known(page, place)
    await place.publish("vehicles/newcomer/reading", **READING)
    await expect(tile(page, "Vehicles heard from")).to_contain_text(f"of {before + 1}")


async def test_the_table_of_devices_is_refreshed_by_itself(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(f"{place.url}/?begins=late-")
    await page.clock.install()
    await page.reload()
    await expect(page.locator("#table")).to_contain_text("No vehicle has an id that begins with late-")
    async with stored(place, "late-one"):
        await listed(page, f"{place.url}/devices?begins=late-", "late-one")
        await page.clock.fast_forward(10_000)
        await expect(page.locator("#table tbody tr")).to_have_count(1)


async def test_a_device_is_found_by_the_beginning_of_its_id(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url)
    await page.get_by_label("Find a vehicle or a meter").fill("meter-000")
    await page.keyboard.press("Enter")
    await expect(page.locator("#table tbody tr")).to_have_count(9)
    await expect(page.get_by_label("Id begins with")).to_have_value("meter-000")


async def test_a_lost_connection_is_shown_and_comes_back_by_itself(tabs: Tabs, place: Place) -> None:
    tabs.expect("net::ERR_")
    page = await tabs.open(place.url)
    said = page.get_by_role("status")
    before = await known(page, place)
    assert place.sidecar.process.stop() == 0
    try:
        await expect(said).to_contain_text("The connection is lost")
    finally:
        place.sidecar.process.start(place.sidecar.is_ready)
    await expect(said).to_be_hidden()
    await place.publish("vehicles/after-the-break/reading", **READING)
    await expect(tile(page, "Vehicles heard from")).to_contain_text(f"of {before + 1}")


async def test_figures_that_cannot_be_had_are_said_to_stand_still_and_then_go_on(tabs: Tabs, place: Place) -> None:
    tabs.expect("500.*/devices")  # the table may be refreshed meanwhile
    page = await tabs.open(place.url)
    said = page.get_by_role("status")
    connection = await asyncpg.connect(place.database_url)
    await connection.execute("ALTER TABLE vehicle_status RENAME TO hidden_away")
    try:
        await expect(said).to_contain_text("The figures stand still: Something went wrong here; the log has it")
    finally:
        await connection.execute("ALTER TABLE hidden_away RENAME TO vehicle_status")
        await connection.close()
    await expect(said).to_be_hidden()

    async def is_whole_again() -> bool:
        return bool((await page.request.get(place.url)).ok)

    await eventually(is_whole_again)  # the table, too: what has failed is not tried again for some seconds


async def test_many_pages_of_one_browser_leave_room_for_others_and_move_when_looked_at(
    tabs: Tabs, place: Place
) -> None:
    first = await tabs.open(place.url)
    others = [await first.context.new_page() for _ in range(7)]
    for page in others:
        await page.goto(place.url)
    await others[-1].goto(f"{place.url}/links")
    await expect(first.get_by_role("status")).to_contain_text("The figures stand still, since others")
    await first.get_by_role("heading", level=1).click()
    await expect(first.get_by_role("status")).to_be_hidden()
    before = await known(first, place)
    await place.publish("vehicles/among-many-pages/reading", **READING)
    await expect(tile(first, "Vehicles heard from")).to_contain_text(f"of {before + 1}")


async def test_pages_that_are_left_stop_no_others(tabs: Tabs, place: Place) -> None:
    tabs.expect("icon.svg: net::ERR_ABORTED")  # a page is left before its icon is there
    page = await tabs.open(place.url)
    other = await page.context.new_page()
    for _ in range(4):
        async with other.expect_request("**/live"):
            await other.goto(place.url)
    before = await known(page, place)
    await place.publish("vehicles/beside-one-that-is-reloaded/reading", **READING)
    await expect(tile(page, "Vehicles heard from")).to_contain_text(f"of {before + 1}")
    await expect(page.get_by_role("status")).to_be_hidden()


async def test_a_page_that_nobody_sees_has_no_stream_and_catches_up_once_it_is_seen(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url)
    before = await known(page, place)
    async with page.expect_event("requestfailed", lambda request: request.url.endswith("/live")):
        await page.evaluate(HIDE, True)
    await place.publish("vehicles/while-hidden/reading", **READING)
    await page.evaluate(HIDE, False)
    await expect(tile(page, "Vehicles heard from")).to_contain_text(f"of {before + 1}")
    await expect(page.get_by_role("status")).to_be_hidden()


@pytest.mark.parametrize("name", [".", ".."])
async def test_a_device_whose_id_is_a_step_in_a_path_has_its_page(tabs: Tabs, place: Place, name: str) -> None:
    async with stored(place, name):
        page = await tabs.open(f"{place.url}/?begins=.")
        await page.locator("#table").get_by_role("link", name=name, exact=True).click()
        await expect(page.get_by_role("heading", level=1)).to_have_text(f"Vehicle {name}")
        await page.get_by_role("link", name="7 days").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text(f"Vehicle {name}")
        await page.get_by_label("Find a vehicle or a meter").fill(name)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text(f"Vehicle {name}")


async def test_a_hostile_name_does_nothing(tabs: Tabs, place: Place) -> None:
    async with stored(place, HOSTILE):
        page = await tabs.open(place.url)
        link = page.locator("#table").get_by_role("link", name=HOSTILE, exact=True)
        await expect(link).to_be_visible()
        await expect(page.locator("main img")).to_have_count(0)


async def test_a_script_that_comes_into_a_page_is_not_run_and_is_seen_by_these_tests(
    browser: Browser, place: Place
) -> None:
    tabs = Tabs(browser)
    page = await tabs.open(place.url)
    await page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.ran = 1\">')"
    )
    await page.evaluate("fetch('http://127.0.0.1:9/').catch(() => 0)")
    assert await page.evaluate("window.ran") is None
    await tabs.close()
    assert any("Content Security Policy" in fault and "inline event handler" in fault for fault in tabs.faults)
    assert any("Content Security Policy" in fault and "127.0.0.1:9" in fault for fault in tabs.faults)


async def test_the_keyboard_gets_past_the_navigation_and_along_it(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url)
    await page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    await expect(skip).to_be_focused()
    await expect(skip).to_be_in_viewport()
    for name in ("fleetwatt", "Fleet", "Links", "Rejections", "API"):
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name=name, exact=True)).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(page.get_by_label("Find a vehicle or a meter")).to_be_focused()
    await skip.focus()
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(re.compile("#main$"))


async def test_what_has_the_focus_keeps_it_while_the_figures_move(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url)
    before = await known(page, place)
    link = page.locator("#flow").get_by_role("link", name="Rejected in 24 h")
    await link.focus()
    await place.publish("vehicles/while-focused/reading", **READING)
    await expect(tile(page, "Vehicles heard from")).to_contain_text(f"of {before + 1}")
    await expect(link).to_be_focused()


async def test_a_table_that_was_scrolled_sideways_stays_so_when_it_is_refreshed(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(f"{place.url}/?begins=v", viewport=PHONE)
    await page.clock.install()
    await page.reload()
    table = page.locator("#table")
    await expect(table.locator("tbody tr")).not_to_have_count(0)
    await table.locator(".scroll").evaluate("(scroll) => { scroll.scrollLeft = 120; }")
    async with stored(place, "v-new"):
        await listed(page, f"{place.url}/devices?begins=v", "v-new")
        await page.clock.fast_forward(10_000)
        await expect(table.get_by_role("link", name="v-new", exact=True)).to_have_count(1)
        assert await table.locator(".scroll").evaluate("(scroll) => scroll.scrollLeft") == 120


async def test_what_was_unfolded_stays_so_when_it_is_replaced(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url)
    summary = page.locator("#lost summary")
    await summary.click()
    await page.locator("#lost section").evaluate("(part) => { part.dataset.old = ''; }")
    await expect(page.locator("#lost section[data-old]")).to_have_count(0)
    await expect(page.locator("#lost details table")).to_be_visible()
    await expect(summary).to_be_focused()


async def test_times_are_in_the_zone_of_the_browser_and_in_utc_on_hover(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url, timezone_id="Asia/Kolkata")
    await expect(page.locator("#zone")).to_have_text(re.compile("Asia/(Kolkata|Calcutta)"))
    time = page.locator("#table time:not([data-age])").first
    at = datetime.fromisoformat(str(await time.get_attribute("datetime")))
    await expect(time).to_have_text(f"{at.astimezone(ZoneInfo('Asia/Kolkata')):%d/%m/%Y, %H:%M}")
    await expect(time).to_have_attribute("title", f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC")


async def test_without_javascript_the_first_page_has_its_figures(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url, java_script_enabled=False)
    await expect(page.locator(".figure strong")).to_have_text(ENERGY)
    await expect(page.locator("#table tbody tr")).not_to_have_count(0)
    await expect(page.locator("#table time:not([data-age])").first).to_contain_text("UTC")


# Signing in.


async def test_a_stranger_signs_in_and_comes_where_they_wanted_to_go(tabs: Tabs, guarded: Guarded) -> None:
    page = await tabs.open(f"{guarded.url}/?kind=meter&begins=meter-000")
    await expect(page).to_have_url(re.compile("/sign-in[?]next="))
    await expect(page.get_by_label("Your token")).to_be_focused()
    await enter_token(page, guarded.tokens["read"])
    await expect(page).to_have_url(f"{guarded.url}/?kind=meter&begins=meter-000")
    await expect(page.locator("#table tbody tr")).to_have_count(9)


async def test_a_wrong_token_is_said_to_be_wrong(tabs: Tabs, guarded: Guarded) -> None:
    tabs.expect("status of 403")
    page = await tabs.open(guarded.url)
    await enter_token(page, "fw_nonsense")
    await expect(page.get_by_role("alert")).to_contain_text("Nobody knows this token")
    await expect(page.get_by_label("Your token")).to_have_accessible_description(re.compile("Nobody knows this token"))


async def test_no_script_can_read_the_cookie_and_no_other_site_can_send_it(tabs: Tabs, guarded: Guarded) -> None:
    page = await tabs.open(guarded.url)
    await enter_token(page, guarded.tokens["admin"])
    await expect(page.get_by_role("button", name="Sign out a-admin")).to_be_visible()
    (cookie,) = await page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/")
    assert guarded.tokens["admin"] not in cookie["value"]
    assert await page.evaluate("document.cookie") == ""


async def test_who_signs_out_is_a_stranger_again(tabs: Tabs, guarded: Guarded) -> None:
    page = await tabs.open(guarded.url)
    await enter_token(page, guarded.tokens["read"])
    await page.get_by_role("button", name="Sign out a-read").click()
    await expect(page.get_by_label("Your token")).to_be_visible()
    await page.goto(guarded.url)
    await expect(page).to_have_url(re.compile("/sign-in"))
    await expect(page.get_by_role("navigation")).to_have_count(0)


# How they look.


async def test_what_axe_finds_is_told_with_its_place(tabs: Tabs, place: Place) -> None:
    page = await tabs.open(place.url)
    await page.evaluate(
        "document.getElementById('main').insertAdjacentHTML('beforeend', '<button class=mute></button>')"
    )
    (violation,) = await axe_violations(page)
    assert violation.startswith("button-name: ")
    assert "['.mute']" in violation


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_the_first_page_fits_and_axe_finds_nothing_grave(tabs: Tabs, place: Place, scheme: str) -> None:
    page = await tabs.open(place.url, color_scheme=scheme)
    await expect(page.locator("#worst tbody tr").first).to_be_visible()
    await check_looks(page, "fleet", scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_signing_in_fits_and_axe_finds_nothing_grave(tabs: Tabs, guarded: Guarded, scheme: str) -> None:
    tabs.expect("status of 403")
    page = await tabs.open(guarded.url, color_scheme=scheme)
    await enter_token(page, "fw_nonsense")
    await expect(page.get_by_role("alert")).to_be_visible()
    await check_looks(page, "sign-in", scheme)
