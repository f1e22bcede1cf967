"""Grafana's dashboards: each query runs as Grafana's role on the real schema, and says what the sidecar says."""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from api.settings import ApiSettings
from dev.postgres import PrivatePostgres
from sql.analytics import FleetPerformance, Rules, fleet, performance
from sql.devices import set_energy_mode
from sql.hours import HOUR
from sql.links import pair
from sql.store import METER, VEHICLE
from tests.conftest import TEMPLATE
from tests.history import START, minute, numbers, store
from tests.test_rollups import MODES, odd_points, roll_up, store_some

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "grafana"
ROLE = "fleetwatt_grafana"
ROLE_STATEMENTS = (FOLDER / "role.sql").read_text(encoding="utf-8")
DATA_SOURCE = (FOLDER / "provisioning" / "datasources" / "fleetwatt.yaml").read_text(encoding="utf-8")
DASHBOARDS: dict[str, Any] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((FOLDER / "dashboards").glob("*.json"))
}
OF_A_PANEL = "-- Dashboard --"
"""What Grafana calls the data source that takes the rows of another panel."""
EVERY_MIN = 10
DAYS = 5
VARIABLES = {"vehicle": "v-leaky", "meter": "m-leaky"}
Window = tuple[datetime, datetime]


# The queries as Grafana would send them.


def expand(sql: str, window: Window, variables: dict[str, str]) -> str:
    """The query with Grafana's macros and variables replaced."""
    start, end = (f"'{moment.astimezone(UTC).isoformat()}'" for moment in window)
    macros = {"$__timeFrom()": start, "$__timeTo()": end, "$__searchFilter": "%"}
    quoted = {f"${{{name}:sqlstring}}": "'" + value.replace("'", "''") + "'" for name, value in variables.items()}
    for name, text in (macros | quoted).items():
        sql = sql.replace(name, text)
    assert "$" not in sql, sql
    return sql


def variables_of(dashboard: Any) -> dict[str, str]:
    """The value of each variable when the dashboard is opened."""
    return {
        one["name"]: VARIABLES[one["name"]] if one["type"] == "query" else one["query"]
        for one in dashboard["templating"]["list"]
    }


def panel_of(dashboard: str, title: str) -> Any:
    (panel,) = (panel for panel in DASHBOARDS[dashboard]["panels"] if panel["title"] == title)
    return panel


def all_panels() -> Iterator[tuple[Any, Any]]:
    for dashboard in DASHBOARDS.values():
        yield from ((dashboard, panel) for panel in dashboard["panels"])


def own_sql(panel: Any) -> list[str]:
    return [target["rawSql"] for target in panel["targets"] if "rawSql" in target]


def all_sql() -> Iterator[str]:
    for dashboard, panel in all_panels():
        yield from own_sql(panel)
        yield from (one["query"] for one in dashboard["templating"]["list"] if one["type"] == "query")


async def ask(
    grafana: asyncpg.Connection, dashboard: str, title: str, window: Window, number: int = 0, **variables: str
) -> list[dict[str, Any]]:
    """What a panel shows, as rows."""
    sql = own_sql(panel_of(dashboard, title))[number]
    rows = await grafana.fetch(expand(sql, window, {**variables_of(DASHBOARDS[dashboard]), **variables}))
    return [dict(row) for row in rows]


def close(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, abs=1e-5)


def hours(first: float, last: float) -> Window:
    return START + first * HOUR, START + last * HOUR


# A small fleet: five days, a reading each ten minutes, and one that begins an hour earlier.


def amounts(kwh: float, first: int = -55, last: int = DAYS * 1440) -> list[tuple[float, float]]:
    return [(at, kwh) for at in range(first, last, EVERY_MIN)]


def register(start: float, step: float) -> list[tuple[float, float]]:
    return [(at, start + n * step) for n, (at, _) in enumerate(amounts(0))]


async def store_fleet(database: asyncpg.Connection) -> None:
    """A good vehicle, a leaky one, one at a meter with a register, one that nobody linked, one that was never heard."""
    await set_energy_mode(database, METER, "m-register", "register")
    for name in ("good", "leaky", "register", "never"):
        await pair(database, f"v-{name}", f"m-{name}", minute(-10_000), None)
    for meter, kwh in (("m-good", 0.5), ("m-leaky", 0.5), ("m-spare", 0.1)):
        await store(database, METER, meter, amounts(kwh))
    await store(database, METER, "m-register", register(1000, 0.5))
    for vehicle, kwh in (("v-good", 0.45), ("v-leaky", 0.3), ("v-register", 0.44), ("v-alone", 0.2)):
        await store(database, VEHICLE, vehicle, amounts(kwh), battery_temp=25.0)
    await database.execute(
        "INSERT INTO rejection (received_at, topic, reason, detail, payload) "
        "VALUES ($1, 'meters/m-odd/reading', 'malformed_json', 'no JSON', '{')",
        minute(90),
    )


async def prepare(url: str) -> None:
    connection = await asyncpg.connect(url)
    await store_fleet(connection)
    await roll_up(connection)
    await connection.close()


@pytest.fixture(scope="module")
def template(postgres: PrivatePostgres) -> Iterator[str]:
    """The small fleet, rolled up once for all tests."""
    name = "grafana_template"
    postgres.create_database(name, TEMPLATE)
    asyncio.run(prepare(postgres.url(name)))
    yield name
    postgres.drop_database(name)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, postgres: PrivatePostgres, template: str) -> Iterator[str]:
    """A database of the test's own, with the small fleet where the test wants it."""
    name = f"grafana_{next(numbers)}"
    postgres.create_database(name, template if "small_fleet" in request.fixturenames else TEMPLATE)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
async def grafana(database: asyncpg.Connection, database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection as Grafana has it."""
    await database.execute(ROLE_STATEMENTS)
    await database.execute(f"ALTER ROLE {ROLE} PASSWORD 'reads'")
    connection = await asyncpg.connect(f"postgresql://{ROLE}:reads@{database_url.rpartition('@')[2]}")
    yield connection
    await connection.close(timeout=5)


@pytest.fixture
async def small_fleet(database: asyncpg.Connection) -> asyncpg.Connection:
    """The test's own copy of the small fleet."""
    return database


# What the dashboards are made of.


def test_dashboards_have_names_of_their_own_and_panels_numbers_of_their_own() -> None:
    assert {name: dashboard["uid"] for name, dashboard in DASHBOARDS.items()} == {
        name: f"fleetwatt-{name}" for name in ("fleet", "ingestion", "meter", "vehicle")
    }
    for dashboard in DASHBOARDS.values():
        ids = [panel["id"] for panel in dashboard["panels"]]
        titles = [panel["title"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)
        assert len(set(titles)) == len(titles)


def test_every_panel_says_what_it_means_and_in_which_unit() -> None:
    for _, panel in all_panels():
        assert len(panel["description"]) > 40, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        words = panel["title"].replace("AC", "").replace("DC", "").split()[1:]
        assert [word for word in words if not word.islower() and not word.isdigit()] == [], panel["title"]


def test_panels_do_not_lie_on_one_another() -> None:
    for dashboard in DASHBOARDS.values():
        taken: set[tuple[int, int]] = set()
        for place in (panel["gridPos"] for panel in dashboard["panels"]):
            assert place["x"] + place["w"] <= 24
            own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert not own & taken
            taken |= own


def test_every_panel_and_variable_asks_the_provisioned_data_source_or_another_panel() -> None:
    (uid,) = re.findall(r"^    uid: (\S+)$", DATA_SOURCE, re.MULTILINE)
    (kind,) = re.findall(r"^    type: (\S+)$", DATA_SOURCE, re.MULTILINE)
    own = {"type": kind, "uid": uid}
    for dashboard, panel in all_panels():
        sources = {one["id"] for one in dashboard["panels"] if own_sql(one)}
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            if target["datasource"]["uid"] == OF_A_PANEL:
                assert target["panelId"] in sources
            else:
                assert target["datasource"] == own
        for variable in dashboard["templating"]["list"]:
            assert variable["type"] == "textbox" or variable["datasource"] == own


def test_links_between_dashboards_lead_to_one_and_set_a_variable_that_it_has() -> None:
    of = {dashboard["uid"]: variables_of(dashboard) for dashboard in DASHBOARDS.values()}
    linked = set()
    for uid, variable in re.findall(r"/d/([\w-]+)\?var-(\w+)=", json.dumps(DASHBOARDS)):
        assert variable in of[uid]
        linked.add(uid)
    assert linked == {"fleetwatt-vehicle", "fleetwatt-meter"}


def test_the_least_efficiency_is_a_variable_with_the_sidecars_default() -> None:
    default = next(one.default for one in msgspec.structs.fields(ApiSettings) if one.name == "low_efficiency")
    for name in ("fleet", "vehicle"):
        assert variables_of(DASHBOARDS[name])["low_efficiency"] == str(default)
    assert not [sql for sql in all_sql() if str(default) in sql]


def test_panels_that_sum_up_the_fleet_begin_alike() -> None:
    queries = [sql for panel in DASHBOARDS["fleet"]["panels"] for sql in own_sql(panel)]
    beginnings = {sql.partition("energy AS NOT MATERIALIZED")[0] for sql in queries}
    energies = {re.split(r"\n\),?\n", sql.partition("energy AS NOT MATERIALIZED")[2])[0] for sql in queries}
    assert (len(queries), len(beginnings), len(energies)) == (4, 1, 1)


def test_the_readings_are_asked_for_one_device_and_two_days_at_most() -> None:
    found = 0
    for sql in all_sql():
        for branch in sql.split("UNION ALL"):
            if re.search(r"FROM (meter|vehicle)_reading\b", branch):
                assert re.search(r"_id = \$\{(meter|vehicle):sqlstring\}", branch)
                assert "<= '48 hours'" in branch
                found += 1
    assert found == 6


def test_the_data_source_is_that_of_the_container_and_its_password_a_secret() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert f"    user: {ROLE}\n" in DATA_SOURCE
    assert f"CREATE ROLE {ROLE} LOGIN;" in ROLE_STATEMENTS
    (secret,) = re.findall(r"password: \$__file\{/run/secrets/(\w+)\}", DATA_SOURCE)
    assert f"  {secret}: {{file: ./secrets/{secret}}}" in compose
    provider = (FOLDER / "provisioning" / "dashboards" / "fleetwatt.yaml").read_text(encoding="utf-8")
    (path,) = re.findall(r"path: (\S+)", provider)
    assert f"./deploy/grafana/dashboards:{path}:ro" in compose


def test_the_page_names_every_dashboard_and_the_role() -> None:
    page = (ROOT / "docs" / "grafana.md").read_text(encoding="utf-8")
    for dashboard in DASHBOARDS.values():
        assert f"| {dashboard['title']} |" in page
    assert "`deploy/grafana/role.sql`" in page


# What they show.


@pytest.mark.parametrize("window", [hours(-2, 30), hours(-2, 24 * DAYS)], ids=["hours", "days"])
@pytest.mark.parametrize("name", sorted(DASHBOARDS))
async def test_every_query_returns_the_columns_that_its_panel_shows(
    name: str, window: Window, small_fleet: asyncpg.Connection, grafana: asyncpg.Connection
) -> None:
    dashboard = DASHBOARDS[name]
    columns: dict[int, set[str]] = {}
    for panel in dashboard["panels"]:
        for sql in own_sql(panel):
            rows = await grafana.fetch(expand(sql, window, variables_of(dashboard)))
            assert rows, panel["title"]
            columns.setdefault(panel["id"], set()).update(rows[0].keys())
            if panel["type"] == "timeseries":
                times = [row["time"] for row in rows]
                assert times == sorted(times)
                assert all(window[0] - timedelta(days=1) < at < window[1] for at in times)
    for panel in dashboard["panels"]:
        here = columns[panel["targets"][0].get("panelId", panel["id"])]
        shown = {one["matcher"]["options"] for one in panel["fieldConfig"]["overrides"]}
        shown |= set(re.findall(r"\w+", panel["options"].get("reduceOptions", {}).get("fields", "")))
        assert shown <= here, panel["title"]
        if panel["type"] in ("table", "timeseries") and "metric" not in here:
            assert here - {"time"} <= shown, f"{panel['title']} shows a column under its raw name"


async def test_every_variable_offers_the_devices(small_fleet: asyncpg.Connection, grafana: asyncpg.Connection) -> None:
    for name, expected in (("vehicle", "v-leaky"), ("meter", "m-register")):
        (variable,) = (one for one in DASHBOARDS[name]["templating"]["list"] if one["type"] == "query")
        offered = [row[0] for row in await grafana.fetch(expand(variable["query"], hours(0, 1), {}))]
        assert expected in offered
        assert offered == sorted(offered)


async def test_the_fleet_shows_what_is_lost(small_fleet: asyncpg.Connection, grafana: asyncpg.Connection) -> None:
    window = START + timedelta(minutes=20), START + 6 * HOUR + timedelta(minutes=40)  # five whole hours, 30 readings
    (found,) = await ask(grafana, "fleet", "Lost energy", window)
    assert found == {
        "ac_kwh": close(30 * 1.5),
        "dc_kwh": close(30 * (0.45 + 0.3 + 0.44)),
        "unlinked_ac_kwh": close(30 * 0.1),
        "unlinked_dc_kwh": close(30 * 0.2),
        "mixed_ac_kwh": 0,
        "mixed_dc_kwh": 0,
        "counted_from": START + HOUR,
        "counted_to": START + 6 * HOUR,
        "lost_kwh": close(30 * 0.31),
        "lost_share": close(0.31 / 1.5),
    }
    by_hour = await ask(grafana, "fleet", "Energy by hour", window)
    assert by_hour == [
        {
            "time": START + n * HOUR,
            "ac_kwh": close(6 * 1.5),
            "dc_kwh": close(6 * 1.19),
            "lost_kwh": close(6 * 0.31),
            "lost_share": close(0.31 / 1.5),
        }
        for n in range(1, 6)
    ]


async def test_the_fleet_names_the_leaky_vehicle(small_fleet: asyncpg.Connection, grafana: asyncpg.Connection) -> None:
    worst = await ask(grafana, "fleet", "Worst vehicles", hours(0, 6))
    assert [(row["vehicle_id"], row["efficiency"], row["status"]) for row in worst] == [
        ("v-leaky", 0.6, "low_efficiency"),
        ("v-register", 0.88, "ok"),
        ("v-good", 0.9, "ok"),
    ]
    assert worst[0]["lost_kwh"] == close(36 * 0.2)
    verdicts = await ask(grafana, "fleet", "Verdicts", hours(0, 6))
    assert {row["status"]: row["vehicles"] for row in verdicts} == {
        "ok": 2,
        "low_efficiency": 1,
        "insufficient_data": 0,
        "above_unity": 0,
        "no_ac_energy": 1,
        "unlinked": 1,
    }
    worst = await ask(grafana, "fleet", "Worst vehicles", hours(0, 6), low_efficiency="0.9")
    assert [row["status"] for row in worst] == ["low_efficiency", "low_efficiency", "ok"]


async def assert_as_the_sidecar(
    grafana: asyncpg.Connection, database: asyncpg.Connection, window: Window
) -> FleetPerformance:
    """Every figure that both have, of the same whole hours."""
    expected = await fleet(database, *window, Rules(), worst=20)
    (found,) = await ask(grafana, "fleet", "Lost energy", window)
    assert (found["counted_from"], found["counted_to"]) == window
    for name in ("ac_kwh", "dc_kwh", "unlinked_ac_kwh", "unlinked_dc_kwh"):
        assert found[name] == close(getattr(expected, name)), name
    assert (found["mixed_ac_kwh"], found["mixed_dc_kwh"]) == (0, 0)
    assert found["lost_kwh"] == close(expected.loss_kwh)
    assert found["lost_share"] == close(None if expected.efficiency is None else 1 - expected.efficiency)
    by_hour = await ask(grafana, "fleet", "Energy by hour", window)
    for name in ("ac_kwh", "dc_kwh"):
        assert sum(row[name] for row in by_hour) == close(getattr(expected, name))
    verdicts = await ask(grafana, "fleet", "Verdicts", window)
    assert {row["status"]: row["vehicles"] for row in verdicts} == expected.status_counts
    worst = await ask(grafana, "fleet", "Worst vehicles", window)
    assert worst == [
        {
            "vehicle_id": one.vehicle_id,
            "status": one.status,
            **{
                name: close(getattr(one, of))
                for name, of in (
                    ("ac_kwh", "ac_kwh"),
                    ("dc_kwh", "dc_kwh"),
                    ("lost_kwh", "loss_kwh"),
                    ("efficiency", "efficiency"),
                    ("coverage", "coverage"),
                )
            },
        }
        for one in expected.worst
    ]
    return expected


@pytest.mark.parametrize(
    "window", [hours(0, 6), hours(3, 27), hours(5, 77), hours(5, 24 * DAYS - 3), hours(-1, 24 * DAYS), hours(23, 100)]
)
async def test_the_fleet_shows_what_the_sidecar_says_of_the_same_hours(
    window: Window, small_fleet: asyncpg.Connection, grafana: asyncpg.Connection
) -> None:
    expected = await assert_as_the_sidecar(grafana, small_fleet, window)
    assert expected.ac_kwh > 0
    for vehicle_id in ("v-leaky", "v-register"):
        one = await performance(small_fleet, vehicle_id, *window, Rules())
        (found,) = await ask(grafana, "vehicle", "Lost energy", window, vehicle=vehicle_id)
        assert one
        assert found == {
            "ac_kwh": close(one.ac_kwh),
            "dc_kwh": close(one.dc_kwh),
            "lost_kwh": close(one.loss_kwh),
            "efficiency": close(one.efficiency),
            "counted_to": window[1],
        }


@pytest.mark.parametrize("seed", range(4))
async def test_an_odd_fleet_is_shown_as_the_sidecar_says(
    seed: int, database: asyncpg.Connection, grafana: asyncpg.Connection
) -> None:
    rng = random.Random(seed)
    for kind in (METER, VEHICLE):
        for number in range(4):
            device_id = f"{kind.name}-{number}"
            await set_energy_mode(database, kind, device_id, rng.choice(MODES))
            await store_some(database, kind, device_id, odd_points(rng))
    # Links change with a day, so that no cell is mixed; one vehicle changes its meter, one is linked later.
    await pair(database, "vehicle-0", "meter-0", minute(-1440), minute(1440))
    await pair(database, "vehicle-0", "meter-1", minute(1440), None)
    await pair(database, "vehicle-1", "meter-0", minute(1440), None)
    await pair(database, "vehicle-2", "meter-2", minute(-1440), None)
    await roll_up(database)
    for _ in range(6):
        first = rng.randrange(-6, 60)
        await assert_as_the_sidecar(grafana, database, hours(first, first + rng.choice([1, 5, 24, 50, 72, 73, 90])))


@pytest.mark.parametrize("seed", range(3))
async def test_links_that_change_at_any_minute_hide_no_energy(
    seed: int, database: asyncpg.Connection, grafana: asyncpg.Connection
) -> None:
    rng = random.Random(seed)
    for kind in (METER, VEHICLE):
        for number in range(2):
            await store_some(database, kind, f"{kind.name}-{number}", odd_points(rng))
    first, second = rng.uniform(100, 2000), rng.uniform(2000, 4000)
    await pair(database, "vehicle-0", "meter-0", minute(-100), minute(first))
    await pair(database, "vehicle-0", "meter-1", minute(first), minute(second))
    await pair(database, "vehicle-1", "meter-0", minute(first + 7), None)
    await roll_up(database)
    for window in (hours(0, 70), hours(5, 90)):
        expected = await fleet(database, *window, Rules(), worst=0)
        (found,) = await ask(grafana, "fleet", "Lost energy", window)
        for side in ("ac", "dc"):
            parts = [found[f"{part}{side}_kwh"] for part in ("", "unlinked_", "mixed_")]
            assert sum(parts) == close(getattr(expected, f"{side}_kwh") + getattr(expected, f"unlinked_{side}_kwh"))
            assert parts[0] <= getattr(expected, f"{side}_kwh") + 1e-5
        for number in range(2):
            (one,) = await ask(grafana, "vehicle", "Lost energy", window, vehicle=f"vehicle-{number}")
            answer = await performance(database, f"vehicle-{number}", *window, Rules())
            assert answer
            assert one["ac_kwh"] <= answer.ac_kwh + 1e-5
            assert one["dc_kwh"] <= answer.dc_kwh + 1e-5


async def test_the_newest_hour_waits_until_counters_are_complete(
    database: asyncpg.Connection, grafana: asyncpg.Connection
) -> None:
    await store_fleet(database)
    await roll_up(database, START + 6 * HOUR + timedelta(minutes=5))
    (found,) = await ask(grafana, "fleet", "Lost energy", hours(0, 8))
    assert (found["counted_from"], found["counted_to"]) == hours(0, 5)
    assert found["ac_kwh"] == close(5 * 6 * 1.5)
    await assert_as_the_sidecar(grafana, database, hours(0, 5))
    (found,) = await ask(grafana, "fleet", "Lost energy", hours(-90, 8))  # with whole days before
    assert (found["counted_from"], found["counted_to"]) == hours(-90, 5)
    assert found["ac_kwh"] == close(5 * 6 * 1.5 + 5 * 1.5 + 1.0)  # of the first, the register's, nobody knows the step


async def test_of_a_window_that_is_not_rolled_up_nothing_is_shown(
    database: asyncpg.Connection, grafana: asyncpg.Connection
) -> None:
    await store_fleet(database)
    (found,) = await ask(grafana, "fleet", "Lost energy", hours(0, 100))
    assert (found["ac_kwh"], found["lost_share"], found["counted_to"]) == (0, None, START)
    assert await ask(grafana, "fleet", "Energy by hour", hours(0, 100)) == []
    assert await ask(grafana, "fleet", "Worst vehicles", hours(0, 100)) == []


async def test_an_hour_in_which_the_meter_changed_is_left_out_on_both_sides(
    database: asyncpg.Connection, grafana: asyncpg.Connection
) -> None:
    for meter in ("m-1", "m-2"):
        await store(database, METER, meter, amounts(0.5))
    await store(database, VEHICLE, "v-1", amounts(0.4))
    await pair(database, "v-1", "m-1", minute(-1000), minute(150))
    await pair(database, "v-1", "m-2", minute(150), None)
    await roll_up(database)
    (found,) = await ask(grafana, "fleet", "Lost energy", hours(0, 6))
    assert found["ac_kwh"] == close(5 * 6 * 0.5)
    assert found["dc_kwh"] == close(5 * 6 * 0.4)
    assert found["mixed_ac_kwh"] == close(2 * 6 * 0.5)
    assert found["mixed_dc_kwh"] == close(6 * 0.4)
    assert found["unlinked_ac_kwh"] == close(5 * 6 * 0.5)  # m-1 from the fourth hour on, m-2 in the first two
    (found,) = await ask(grafana, "vehicle", "Lost energy", hours(0, 6), vehicle="v-1")
    assert (found["ac_kwh"], found["dc_kwh"]) == (close(15), close(12))
    times = [row["time"] for row in await ask(grafana, "vehicle", "Energy by hour", hours(0, 6), vehicle="v-1")]
    assert times == [START + n * HOUR for n in (0, 1, 3, 4, 5)]
    (found,) = await ask(grafana, "meter", "AC energy", hours(0, 6), meter="m-1")
    assert found == {"ac_kwh": 18, "linked_kwh": 6, "unlinked_kwh": 9, "mixed_kwh": 3}
    (found,) = await ask(grafana, "fleet", "Lost energy", hours(-24, 24 * DAYS))  # by day, so a day is left out
    assert found["mixed_ac_kwh"] == close(2 * 24 * 6 * 0.5)
    assert found["ac_kwh"] == close((24 * (DAYS - 1) + 1) * 6 * 0.5)


async def test_a_vehicle_shows_power_efficiency_and_battery(
    small_fleet: asyncpg.Connection, grafana: asyncpg.Connection
) -> None:
    ac = await ask(grafana, "vehicle", "AC and DC power", hours(0, 3), number=0, vehicle="v-register")
    dc = await ask(grafana, "vehicle", "AC and DC power", hours(0, 3), number=1, vehicle="v-register")
    assert [row["ac_kw"] for row in ac] == [close(3.0)] * 17  # 0.5 kWh in ten minutes; the first has none before it
    assert [row["dc_kw"] for row in dc] == [close(2.64)] * 17
    for number, kw in ((0, 3.0), (1, 2.64)):
        days = await ask(grafana, "vehicle", "AC and DC power", hours(0, 80), number=number, vehicle="v-register")
        assert [next(iter(set(row) - {"time"})) for row in days] == [("ac_kw", "dc_kw")[number]] * 80
        assert all(row[("ac_kw", "dc_kw")[number]] == close(kw) for row in days)
    efficiency = await ask(grafana, "vehicle", "Efficiency by hour", hours(0, 2))
    assert [(row["efficiency"], row["least_ok"]) for row in efficiency] == [(close(0.6), 0.85)] * 2
    for window in (hours(0, 3), hours(0, 80)):
        assert {row["battery_temp"] for row in await ask(grafana, "vehicle", "Battery temperature", window)} == {25.0}
        assert {row["soc"] for row in await ask(grafana, "vehicle", "State of charge", window)} == {50.0}
    (link,) = await ask(grafana, "vehicle", "Links", hours(0, 3), vehicle="v-register")
    assert link == {
        "meter_id": "m-register",
        "energy_mode": "register",
        "valid_from": minute(-10_000),
        "valid_to": None,
    }
    (newest,) = await ask(grafana, "vehicle", "Newest reading", hours(0, 3))
    assert (newest["ts"], newest["soc"], newest["battery_temp"]) == (minute(DAYS * 1440 - 5), 50, 25)


async def test_a_meter_shows_power_energy_and_voltage(
    small_fleet: asyncpg.Connection, grafana: asyncpg.Connection
) -> None:
    for window, count in ((hours(0, 3), 17), (hours(0, 80), 80)):
        power = await ask(grafana, "meter", "Power", window, meter="m-register")
        assert [row["ac_kw"] for row in power] == [close(3.0)] * count
        voltage = await ask(grafana, "meter", "Voltage", window, meter="m-register")
        assert {(row["voltage"], row["voltage_min"], row["voltage_max"]) for row in voltage} == {(230.0, 230.0, 230.0)}
    (spare,) = await ask(grafana, "meter", "AC energy", hours(0, 3), meter="m-spare")
    assert spare == {name: close(18 * 0.1 * share) for name, share in zip(spare, (1, 0, 1, 0), strict=True)}
    energy = await ask(grafana, "meter", "Energy by hour", hours(0, 2), meter="m-register")
    assert [row["linked_kwh"] for row in energy] == [close(3.0)] * 2
    assert await ask(grafana, "meter", "Links", hours(0, 2), meter="m-spare") == []


async def test_a_counters_jump_is_no_power(database: asyncpg.Connection, grafana: asyncpg.Connection) -> None:
    await set_energy_mode(database, METER, "m-1", "register")
    await store(database, METER, "m-1", [(0, 100), (1, 100.1), (2, 9100), (3, 9100.1), (4, 50)])
    power = await ask(grafana, "meter", "Power", hours(0, 1), meter="m-1")
    assert [row["ac_kw"] for row in power] == [close(6.0), 0, close(6.0), 0]


async def test_ingestion_shows_what_comes_and_what_does_not(
    small_fleet: asyncpg.Connection, grafana: asyncpg.Connection
) -> None:
    rates = await ask(grafana, "ingestion", "Readings per minute", hours(0, 2))
    assert [(row["meters"], row["vehicles"]) for row in rates] == [(close(0.4), close(0.4))] * 2
    (by_day, *_) = await ask(grafana, "ingestion", "Readings per minute", hours(0, 80))
    assert (by_day["meters"], by_day["vehicles"]) == (close(0.4), close(0.4))
    (rejection,) = await ask(grafana, "ingestion", "Rejections", hours(0, 2))
    assert rejection == {"time": START + HOUR, "metric": "malformed_json", "rejections": 1}
    (reason,) = await ask(grafana, "ingestion", "Rejections by reason", hours(0, 2))
    assert reason == {
        "reason": "malformed_json",
        "rejections": 1,
        "devices": 1,
        "last_received_at": minute(90),
    }
    await small_fleet.execute("UPDATE meter_status SET received_at = now() WHERE meter_id = 'm-good'")
    (heard,) = await ask(grafana, "ingestion", "Heard from in 5 minutes", hours(0, 2))
    assert heard == {"meters": 1, "vehicles": 0, "meters_known": 4, "vehicles_known": 4}
    assert await ask(grafana, "ingestion", "Silent devices", hours(0, 2)) == [{"meters": 3, "vehicles": 4}]
    silent = await ask(grafana, "ingestion", "Silent for longest", hours(0, 2))
    meters, vehicles = ("leaky", "register", "spare"), ("alone", "good", "leaky", "register")
    expected = {*(f"m-{name}" for name in meters), *(f"v-{name}" for name in vehicles)}
    assert {row["id"] for row in silent} == expected
    assert [row["received_at"] for row in silent] == sorted(row["received_at"] for row in silent)


async def test_ingestion_shows_how_far_rollups_are_behind(
    small_fleet: asyncpg.Connection, grafana: asyncpg.Connection
) -> None:
    await store(small_fleet, METER, "m-good", [(62, 0.1)])
    await small_fleet.execute("UPDATE rollup_state SET rolled_through = now() + interval '1 day' WHERE kind = 'meter'")
    (found,) = await ask(grafana, "ingestion", "Rollups behind", hours(0, 2))
    assert (found["meters_s"], found["meter_hours_late"], found["vehicle_hours_late"]) == (0, 1, 0)
    assert found["vehicles_s"] > 365 * 86400


# Grafana's role.


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM meter_reading",
        "UPDATE device SET energy_mode = 'register'",
        "INSERT INTO vehicle_meter_link VALUES ('v', 'm', now(), NULL)",
        "UPDATE rollup_state SET rolled_through = now()",
        "TRUNCATE vehicle_hour",
        "DROP TABLE meter_status",
        "CREATE TABLE mine (id integer)",
        "SELECT payload FROM rejection",
        "SELECT topic FROM rejection",
        "SELECT ensure_day('meter_reading', '2020-01-01')",
        "COPY device TO PROGRAM 'cat'",
    ],
)
async def test_grafanas_role_reads_and_cannot_write(statement: str, grafana: asyncpg.Connection) -> None:
    with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.ReadOnlySQLTransactionError)):
        await grafana.execute(statement)
    await grafana.execute("SET default_transaction_read_only = off")  # which anybody may
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await grafana.execute(statement)


async def test_grafanas_role_gets_no_query_that_never_ends(
    database: asyncpg.Connection, grafana: asyncpg.Connection
) -> None:
    assert await grafana.fetchval("SHOW statement_timeout") == "30s"
    await database.execute(ROLE_STATEMENTS)  # again after an upgrade
    assert await database.fetchval("SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", ROLE) == 20
