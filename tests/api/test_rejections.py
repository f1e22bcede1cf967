"""Rejections over HTTP: listed, shown and replayed, for admins, and a flood of them that is not all kept."""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
from starlette.testclient import TestClient

from api import rejections as resource
from api.app import build_app
from daemon.readings import PAYLOAD_BYTES_MAX
from sql import flood
from sql.rejections import Rejection, insert
from tests.api.conftest import MINUTE, NOW, bearer, check_problem, client_of, meter, running, settings, vehicle

HOUR = 60 * MINUTE
THEN = NOW - HOUR


def rejected(value: Any, reason: str = "clock_ahead", topic: str = "meters/m-1/reading", n: int = 0) -> Rejection:
    payload = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Rejection(THEN + n * MINUTE, topic, reason, f"it is {reason}", payload)


def replay(client: TestClient, **body: Any) -> Any:
    response = client.post("/v1/rejections/replay", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def listed(client: TestClient, **query: Any) -> Any:
    response = client.get("/v1/rejections", params=query)
    assert response.status_code == 200, response.text
    return response.json()


def text(moment: Any) -> str:
    return str(moment.isoformat().replace("+00:00", "Z"))


async def test_they_are_listed_by_reason_and_device(client: TestClient, database: asyncpg.Connection) -> None:
    some = [rejected(b"%d" % n, n=n) for n in range(3)]
    await insert(database, [*some, rejected({}, "too_old"), rejected({}, "too_old", "http")])
    found = listed(client)
    assert (found["groups"], found["rejections"], found["isComplete"]) == (3, 5, True)
    example_id = found["items"][0].pop("exampleId")
    assert found["items"][0] == {
        "reason": "clock_ahead",
        "device": "m-1",
        "rejections": 3,
        "firstReceivedAt": text(THEN),
        "lastReceivedAt": text(THEN + 2 * MINUTE),
        "exampleDetail": "it is clock_ahead",
    }
    assert client.get(f"/v1/rejections/{example_id}").json()["payload"] == "2"
    for query, count in (
        ({"reason": "too_old"}, 2),
        ({"device": "m-1"}, 4),
        ({"device": "-"}, 1),
        ({"since": text(THEN + MINUTE)}, 2),
        ({"until": text(THEN + MINUTE)}, 3),
        ({"reason": "conflict"}, 0),
    ):
        assert listed(client, **query)["rejections"] == count, query
    few = listed(client, limit=1)
    assert (len(few["items"]), few["groups"], few["rejections"]) == (1, 3, 5)


async def test_one_is_shown_with_its_payload(client: TestClient, database: asyncpg.Connection) -> None:
    payloads = [b"", b'{"a": "\x1b\\u0000"}', bytes(range(256)), b"x" * (PAYLOAD_BYTES_MAX + 5)]
    await insert(database, [rejected(payload) for payload in payloads])
    ids = [row["id"] for row in await database.fetch("SELECT id FROM rejection ORDER BY id")]
    shown = [client.get(f"/v1/rejections/{number}").json() for number in ids]
    assert [each["payloadBytes"] for each in shown] == [len(payload) for payload in payloads]
    assert [each["payload"] for each in shown[:2]] == [payload.decode() for payload in payloads[:2]]
    assert (shown[2]["payload"], base64.b64decode(shown[2]["payloadBase64"])) == (None, payloads[2])
    assert shown[3]["payload"] == "x" * PAYLOAD_BYTES_MAX
    assert shown[0]["topic"] == "meters/m-1/reading"
    check_problem(client.get(f"/v1/rejections/{max(ids) + 1}"), 404)


async def test_a_replay_is_dry_unless_it_is_told_otherwise(client: TestClient, database: asyncpg.Connection) -> None:
    good, bad = meter(THEN), meter(THEN, voltage=-1)
    await insert(database, [rejected(good), rejected(good, n=1), rejected(bad, "out_of_range")])
    expected = [
        {"reason": "clock_ahead", "rejections": 2, "stored": 1, "duplicate": 1, "rejected": {}},
        {"reason": "out_of_range", "rejections": 1, "stored": 0, "duplicate": 0, "rejected": {"out_of_range": 1}},
    ]

    def outcomes(report: dict[str, Any]) -> list[dict[str, Any]]:
        return sorted(report["outcomes"], key=lambda outcome: str(outcome["reason"]))

    for _ in range(2):
        dry = replay(client)
        assert (dry["dryRun"], dry["rejections"], dry["next"], outcomes(dry)) == (True, 3, None, expected)
    check_problem(client.get("/v1/meters/m-1"), 404)
    done = replay(client, dryRun=False)
    assert (done["dryRun"], outcomes(done)) == (False, expected)
    assert client.get("/v1/meters/m-1").json()["ts"] == text(THEN)
    assert listed(client)["rejections"] == 1


async def test_going_on_with_next_meets_each_once(client: TestClient, database: asyncpg.Connection) -> None:
    bad = [rejected(b"{", "malformed_json", n=n) for n in range(5)]
    good = [rejected(vehicle(THEN - n * MINUTE), topic="vehicles/v-1/reading", n=n) for n in range(6)]
    await insert(database, bad + good)
    seen, cursor, pages = 0, None, 0
    while pages == 0 or cursor:
        report = replay(client, dryRun=False, limit=4, **({"cursor": cursor} if cursor else {}))
        seen, cursor, pages = seen + report["rejections"], report["next"], pages + 1
    assert (seen, pages) == (11, 3)
    assert listed(client)["rejections"] == 5
    assert len(client.get("/v1/vehicles/v-1/readings").json()["items"]) == 6


async def test_only_what_was_chosen_is_replayed(client: TestClient, database: asyncpg.Connection) -> None:
    await insert(database, [rejected(b"", "too_old", f"meters/m-{n % 2}/reading", n) for n in range(6)])
    ids = [row["id"] for row in await database.fetch("SELECT id FROM rejection ORDER BY id")]
    for body, count in (
        ({"ids": ids[:2]}, 2),
        ({"reason": "too_old"}, 6),
        ({"reason": "conflict"}, 0),
        ({"device": "m-1", "reason": None}, 3),
        ({"ids": [float(ids[0])], "limit": 2.0}, 1),
        ({"ids": [ids[0], ids[0]]}, 1),
        ({"ids": [resource.ID_MAX]}, 0),
        ({"since": text(THEN + 4 * MINUTE)}, 2),
        ({"until": text(THEN + 4 * MINUTE), "device": "m-0"}, 2),
        ({"since": "2000-01-01T00:00:00+00:02", "until": "2099-12-31T23:59:59-00:02"}, 6),
    ):
        assert replay(client, **body)["rejections"] == count, body


async def test_analytics_are_asked_anew_after_a_replay(database_url: str, database: asyncpg.Connection) -> None:
    with client_of(build_app(settings(database_url, ANALYTICS_CACHE_TTL_S="3600"))) as client:
        assert client.post("/v1/ingest", json=vehicle(NOW - 2 * MINUTE)).status_code == 201
        path = f"/v1/analytics/performance/v-1?from={text(NOW - HOUR)}&to={text(NOW)}"
        assert client.get(path).json()["samples"] == 1
        await insert(database, [rejected(vehicle(NOW - MINUTE), topic="vehicles/v-1/reading")])
        replay(client, dryRun=True)
        assert client.get(path).json()["samples"] == 1
        replay(client, dryRun=False)
        assert client.get(path).json()["samples"] == 2


async def test_two_replays_at_once_store_and_tell_of_each_rejection_once(
    database_url: str, database: asyncpg.Connection
) -> None:
    some = [rejected(vehicle(NOW - n * MINUTE), topic="vehicles/v-1/reading") for n in range(1, 500)]
    await insert(database, some)
    async with running(build_app(settings(database_url))) as client:
        body = {"dryRun": False, "limit": 1000}
        answers = await asyncio.gather(*(client.post("/v1/rejections/replay", json=body) for _ in range(3)))
    told = [answer.json()["rejections"] for answer in answers]
    assert sorted(told) == [0, 0, len(some)]
    assert await database.fetchval("SELECT count(*) FROM vehicle_reading") == len(some)


def test_rejections_are_for_admins(database_url: str, tokens: Callable[[], tuple[str, dict[str, str]]]) -> None:
    path, made = tokens()
    with client_of(build_app(settings(database_url, API_TOKENS_FILE=path))) as client:
        for role, status in (("read", 403), ("write", 403), ("admin", 200)):
            assert client.get("/v1/rejections", headers=bearer(made[role])).status_code == status
            response = client.post("/v1/rejections/replay", json={}, headers=bearer(made[role]))
            assert response.status_code == status


NO_IDS: tuple[Any, ...] = (0, -1, resource.ID_MAX + 1, 2**64, 1.5, 2.0**53, 1e17, "1", True, None, [1], {})
"""As a float, 2**53 may have been written as the number behind it."""
WRONG_IDS: tuple[Any, ...] = (
    *([one] for one in NO_IDS),
    [1, False],
    [1] * (resource.IDS_MAX + 1),
    {},
    1,
    "1",
)


@pytest.mark.parametrize(
    ("body", "name", "sentence"),
    [
        ({"dryRun": "false"}, "dryRun", "allowed: true or false"),
        ({"dryRun": None}, "dryRun", "allowed: true or false"),
        ({"dry_run": False}, "dry_run", "is not known here"),
        ({"ids": []}, "ids", f"allowed: an array of 1 to {resource.IDS_MAX} ids"),
        *[({"ids": ids}, "ids", f"each a whole number from 1 to {resource.ID_MAX}") for ids in WRONG_IDS],
        ({"limit": "5"}, "limit", "a whole number"),
        ({"limit": resource.REPLAY_MAX + 1}, "limit", f"from 1 to {resource.REPLAY_MAX}"),
        ({"reason": "odd"}, "reason", "allowed: malformed_json or"),
        ({"device": "a b"}, "device", "1 to 64 of"),
        ({"since": "2h"}, "since", "RFC 3339"),
        ({"cursor": "1"}, "cursor", "`next` of the report before"),
    ],
)
def test_a_wrong_replay_is_422_with_a_sentence(
    shared: TestClient, body: dict[str, Any], name: str, sentence: str
) -> None:
    problem = check_problem(shared.post("/v1/rejections/replay", json=body), 422)
    assert problem["errors"][0]["name"] == name
    assert sentence in problem["detail"]


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "9" * 30, str(10**18), "%00", "replays"])
def test_what_is_no_id_is_422(shared: TestClient, number: str) -> None:
    assert "a whole number from 1" in check_problem(shared.get(f"/v1/rejections/{number}"), 422)["detail"]


async def test_of_a_flood_some_are_kept_and_the_client_gets_its_report_in_full(
    database_url: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flood, "BURST_TOKENS", 50)
    monkeypatch.setattr(flood, "RESERVE_TOKENS", 5)
    with client_of(build_app(settings(database_url, REJECTIONS_PER_S_MAX="0.001"))) as client:
        report = check_problem(client.post("/v1/ingest", json=[meter(voltage=-1)] * 200 + [7] * 100), 422)["report"]
        assert (report["received"], report["rejected"], report["errorsOmitted"]) == (300, 300, 200)
        kept = await database.fetchval("SELECT count(*) FROM rejection")
        assert 45 <= kept <= 50
        assert client.post("/v1/ingest", json=[meter(), 7]).json()["rejected"] == 1
        metrics = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    counted = [float(v) for name, v in metrics.items() if name.startswith("fleetwatt_http_rejections_not_kept_total")]
    assert sum(counted) == 301 - await database.fetchval("SELECT count(*) FROM rejection")
    assert float(metrics['fleetwatt_http_readings_total{result="rejected"}']) == 301


async def test_without_a_limit_all_rejections_are_kept(
    database_url: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flood, "BURST_TOKENS", 50)
    with client_of(build_app(settings(database_url, REJECTIONS_PER_S_MAX="0"))) as client:
        client.post("/v1/ingest", json=[7] * 300)
    assert await database.fetchval("SELECT count(*) FROM rejection") == 300
