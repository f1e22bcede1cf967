"""Answers are kept, tagged, and computed once for all who ask at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from api import cache as cache_module
from api.app import build_app
from api.cache import Cache
from sql import analytics
from tests.api.conftest import MINUTE, NOW, running, settings, vehicle

FROM, TO = (NOW - timedelta(hours=2)).isoformat()[:19] + "Z", NOW.isoformat()[:19] + "Z"
PATH = f"/v1/analytics/performance/v-1?from={FROM}&to={TO}"


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The vehicles whose performance was queried, one entry a query."""
    found: list[str] = []
    real = analytics.performance

    async def counted(connection: Any, vehicle_id: str, *others: Any) -> Any:
        found.append(vehicle_id)
        await asyncio.sleep(0.05)
        return await real(connection, vehicle_id, *others)

    monkeypatch.setattr(analytics, "performance", counted)
    return found


async def send(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/v1/ingest", json=vehicle(NOW - MINUTE))).status_code == 201


async def test_many_who_ask_at_once_cost_one_query_and_those_after_them_none(
    database_url: str, queries: list[str]
) -> None:
    async with running(build_app(settings(database_url, ANALYTICS_CACHE_TTL_S="60"))) as client:
        await send(client)
        answers = await asyncio.gather(*(client.get(PATH) for _ in range(30)))
        answers.append(await client.get(PATH))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert queries == ["v-1"]
        metrics = (await client.get("/metrics")).text
        for result, count in (("miss", 1), ("joined", 29), ("hit", 1)):
            assert f'fleetwatt_http_cache_total{{result="{result}"}} {count}.0' in metrics


async def test_an_answer_has_a_tag_and_is_304_for_who_has_it(database_url: str, queries: list[str]) -> None:
    async with running(build_app(settings(database_url, ANALYTICS_CACHE_TTL_S="60"))) as client:
        await send(client)
        first = await client.get(PATH)
        tag = first.headers["etag"]
        assert first.headers["cache-control"] in ("private, max-age=59", "private, max-age=60")
        for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = await client.get(PATH, headers={"If-None-Match": given})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert (await client.get(PATH, headers={"If-None-Match": '"other"'})).status_code == 200
        assert len(queries) == 1


async def test_a_changed_link_or_mode_is_seen_at_once(database_url: str, queries: list[str]) -> None:
    async with running(build_app(settings(database_url, ANALYTICS_CACHE_TTL_S="60"))) as client:
        await send(client)
        assert (await client.get(PATH)).json()["status"] == "unlinked"
        await client.post("/v1/links", json={"vehicleId": "v-1", "meterId": "m-1", "validFrom": FROM})
        linked = (await client.get(PATH)).json()
        assert linked["status"] != "unlinked"
        await client.put("/v1/devices/vehicle/v-1", json={"energyMode": "register"})
        assert (await client.get(PATH)).json()["energyMode"] == "register"
        await client.delete("/v1/links/v-1")
        await client.get(PATH)
        assert len(queries) == 4


def computing(values: list[bytes]) -> Callable[[], Awaitable[bytes]]:
    async def compute() -> bytes:
        await asyncio.sleep(0.01)
        return values.pop(0)

    return compute


async def test_an_entry_is_good_for_its_time_and_no_longer() -> None:
    now_s = 0.0
    cache = Cache(10, lambda _: None, lambda: now_s)
    compute = computing([b"1", b"2"])
    assert (await cache.get("k", compute)).body == b"1"
    now_s = 9.9
    entry = await cache.get("k", compute)
    assert (entry.body, cache.seconds_left(entry)) == (b"1", 0)
    now_s = 10.0
    assert (await cache.get("k", compute)).body == b"2"


async def test_what_was_computed_before_a_change_is_not_kept() -> None:
    cache = Cache(10, lambda _: None)
    compute = computing([b"old", b"new"])
    asking = asyncio.create_task(cache.get("k", compute))
    await asyncio.sleep(0)
    cache.clear()
    assert (await cache.get("k", compute)).body == b"new"
    assert (await asking).body == b"old"
    assert (await cache.get("k", compute)).body == b"new"


async def test_one_who_goes_away_does_not_take_the_answer_from_the_others() -> None:
    cache = Cache(10, lambda _: None)
    compute = computing([b"1"])
    first, second = (asyncio.create_task(cache.get("k", compute)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).body == b"1"


async def test_an_error_goes_to_all_and_is_not_kept() -> None:
    cache = Cache(10, lambda _: None)

    async def broken() -> bytes:
        raise LookupError

    found = await asyncio.gather(*(cache.get("k", broken) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in found] == [LookupError] * 3
    assert (await cache.get("k", computing([b"1"]))).body == b"1"


async def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "ENTRIES_MAX", 2)
    told: list[str] = []
    cache = Cache(10, told.append)
    for key in ("a", "b", "a", "c", "a", "b"):
        await cache.get(key, computing([b""]))
    assert told == ["miss", "miss", "hit", "miss", "hit", "miss"]


async def test_large_answers_push_out_others_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "BYTES_MAX", 10)
    told: list[str] = []
    now_s = 0.0
    cache = Cache(10, told.append, lambda: now_s)
    for key, body in (("a", b"12345"), ("b", b"12345"), ("a", b""), ("c", b"1"), ("a", b""), ("b", b"123")):
        await cache.get(key, computing([body]))
    assert told == ["miss", "miss", "hit", "miss", "hit", "miss"]
    now_s = 11.0
    for key in ("a", "b", "c"):
        await cache.get(key, computing([b"123"]))
    told.clear()
    for key in ("a", "b", "c"):
        await cache.get(key, computing([b""]))
    assert told == ["hit"] * 3
    assert (await cache.get("d", computing([b"12345678901"]))).body == b"12345678901"
    await cache.get("d", computing([b""]))
    assert told[3:] == ["miss", "miss"]
