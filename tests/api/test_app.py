"""What holds for every route: problem documents, bounds, CORS, the log, metrics, and a database that goes away."""

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import httpx2
import msgspec
import psutil
import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from api import access, analytics
from api.app import build_app
from api.contract import Operation
from api.database import ACQUIRE_TIMEOUT_S, PROBE_INTERVAL_S, PROBE_TIMEOUT_S, open_database
from api.routes import OPERATIONS, by_path
from dev.house import eventually
from dev.postgres import PrivatePostgres
from dev.processes import free_port
from sql.migrate import migrate
from tests.api.conftest import NOW, check_problem, client_of, meter, running, settings


@pytest.mark.parametrize("path", ["/x", "/v1", "/v1/", "/v1/meters/", "/v2/meters", "/api", "/v1/meters/a/b", "/x%00"])
def test_what_is_not_there_is_404(shared: TestClient, path: str) -> None:
    assert "openapi.json" in check_problem(shared.get(path), 404)["detail"]


@pytest.mark.parametrize("path", sorted(by_path()))
def test_a_method_that_is_not_there_is_405_with_those_that_are(shared: TestClient, path: str) -> None:
    methods = set(by_path()[path])
    allowed = methods | ({"HEAD"} if "GET" in methods else set())
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"} - methods:
        response = shared.request(method, path.replace("{", "").replace("}", ""))
        check_problem(response, 405)
        assert response.headers["allow"] == ", ".join(sorted(allowed))


def test_head_is_get_without_a_body(shared: TestClient) -> None:
    response = shared.head("/v1/meters")
    assert response.status_code == 200
    assert int(response.headers["content-length"]) > 0


def test_a_bug_is_500_with_an_id_that_is_in_the_log_and_no_trace(
    shared: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the secret inside")

    monkeypatch.setattr(analytics, "_rules", broken)
    with capture_logs() as logs:
        problem = check_problem(shared.get("/v1/analytics/fleet"), 500)
    assert problem["requestId"] in problem["detail"]
    assert "secret" not in json.dumps(problem)
    (line,) = [line for line in logs if line["event"] == "request failed"]
    assert line["request_id"] == problem["requestId"]
    assert "the secret inside" in str(line["exc_info"])


def test_each_request_is_a_line_in_the_log(shared: TestClient) -> None:
    with capture_logs() as logs:
        response = shared.get("/v1/meters?limit=3")
        shared.get("/livez")
    lines = {line["path"]: line for line in logs if line["event"] == "request"}
    line = lines["/v1/meters"]
    assert (line["method"], line["status"], line["log_level"]) == ("GET", 200, "info")
    assert line["request_id"] == response.headers["x-request-id"]
    assert line["bytes"] == len(response.content)
    assert line["duration_ms"] >= 0
    assert lines["/livez"]["log_level"] == "debug"


def test_metrics_count_by_the_template_of_the_route(client: TestClient) -> None:
    client.post("/v1/ingest", json=[meter(), meter(), 1])
    for name in ("a", "b"):
        client.get(f"/v1/meters/{name}")
    client.get("/nowhere")
    client.get("/v1/analytics/fleet")
    text = client.get("/metrics").text
    assert 'fleetwatt_http_requests_total{method="GET",route="/v1/meters/{id}",status="404"} 2.0' in text
    assert 'fleetwatt_http_requests_total{method="GET",route="unknown",status="404"} 1.0' in text
    assert 'fleetwatt_http_request_seconds_count{method="POST",route="/v1/ingest"} 1.0' in text
    for result, count in (("stored", 1), ("duplicate", 1), ("rejected", 1)):
        assert f'fleetwatt_http_readings_total{{result="{result}"}} {count}.0' in text
    assert 'fleetwatt_http_cache_total{result="miss"} 1.0' in text
    assert "fleetwatt_http_database_up 1.0" in text
    assert 'fleetwatt_http_pool_connections{state="used"} 0.0' in text


def test_cors_is_off_unless_set(shared: TestClient, shared_url: str) -> None:
    ask = {"Origin": "https://dash.example", "Access-Control-Request-Method": "GET"}
    check_problem(shared.options("/v1/meters", headers=ask), 405)
    assert "access-control-allow-origin" not in shared.get("/v1/meters", headers=ask).headers
    with client_of(build_app(settings(shared_url, API_CORS_ORIGINS="https://dash.example, https://x.example"))) as on:
        assert on.options("/v1/meters", headers=ask).status_code == 200
        assert on.get("/v1/meters", headers=ask).headers["access-control-allow-origin"] == "https://dash.example"
        other = {**ask, "Origin": "https://evil.example"}
        assert "origin" in check_problem(on.options("/v1/meters", headers=other), 403)["detail"]
        assert "access-control-allow-origin" not in on.get("/v1/meters", headers=other).headers


def test_more_requests_than_are_bearable_are_503(shared: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "REQUESTS_MAX", 0)
    response = shared.get("/v1/meters")
    check_problem(response, 503)
    assert int(response.headers["retry-after"]) > 0
    check_problem(shared.get("/readyz"), 503)
    assert shared.get("/livez").status_code == 200


def test_the_docs_page_asks_no_other_host(shared: TestClient) -> None:
    page = shared.get("/docs")
    assert "://" not in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for name in re.findall(r'"(docs/[^"]+)"', page.text):
        file = shared.get(f"/{name}")
        assert (file.status_code, len(file.content) > 100) == (200, True)
        assert shared.get(f"/api/{name}").status_code == 200
    check_problem(shared.get("/docs/index.html"), 422)


# The database goes away.

DATABASE_ROUTES = [operation for operation in OPERATIONS if operation.is_versioned]


async def ask(client: httpx2.AsyncClient, operation: Operation) -> httpx2.Response:
    values = {"kind": "meter", "id": "1" if operation.tag == "Rejections" else "d-1"}
    path = re.sub(r"\{(\w+)\}", lambda name: values.get(name[1], "d-1"), operation.full_path)
    query = {"vehicleId": "d-1"} if operation.id == "performanceByQuery" else {}
    body: Any = meter() if operation.body_media else None
    if operation.body_example is not None:
        body = {name: value for name, value in msgspec.to_builtins(operation.body_example).items() if value is not None}
    return await client.request(operation.method, path, params=query, json=body)


async def check_away(client: httpx2.AsyncClient) -> None:
    """Where the database is known to be away, every route says so and none asks it."""
    with capture_logs() as logs:
        for operation in DATABASE_ROUTES:
            response = await ask(client, operation)
            check_problem(response, 503)
            assert int(response.headers["retry-after"]) > 0
    assert "request without a database" not in {line["event"] for line in logs}
    assert (await client.get("/livez")).status_code == 200
    for path in ("/readyz", "/health"):
        problem = check_problem(await client.get(path), 503)
        assert problem["faults"] == ["the database does not answer"]


async def test_without_a_database_every_route_is_503_at_once() -> None:
    app = build_app(settings(f"postgresql://nobody@127.0.0.1:{free_port()}/none"))
    async with running(app) as client:
        await check_away(client)


async def until(client: httpx2.AsyncClient, status: int) -> None:
    """Wait until /readyz answers so."""

    async def is_so() -> bool:
        return (await client.get("/readyz")).status_code == status

    await eventually(is_so)


@pytest.fixture
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivatePostgres]:
    """A server that a test may stop and freeze."""
    server = PrivatePostgres(tmp_path_factory.mktemp("postgres"), {"fsync": "off", "shared_buffers": "16MB"})
    server.start()
    yield server
    server.process.stop()


async def test_a_database_that_stops_or_hangs_is_503_for_whoever_waits_and_comes_back(
    own_postgres: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PROBE_INTERVAL_S + PROBE_TIMEOUT_S < ACQUIRE_TIMEOUT_S, "the watcher cuts off who waits"
    monkeypatch.setattr("api.database.ACQUIRE_TIMEOUT_S", 300.0)  # so that nobody else does
    server = own_postgres
    connection = await asyncpg.connect(server.url("postgres"))
    await migrate(connection)
    await connection.close()
    async with running(build_app(settings(server.url("postgres")))) as client:
        assert (await client.get("/v1/meters")).status_code == 200
        server.process.stop()
        check_problem(await client.get("/v1/meters"), 503)
        await until(client, 503)
        await check_away(client)
        server.start()
        await until(client, 200)
        assert (await client.post("/v1/ingest", json=meter(NOW))).status_code == 201
        with frozen(server):
            async with asyncio.timeout(20):  # less than the 30 s that work may take
                answers = await asyncio.gather(*(client.get("/v1/meters") for _ in range(20)))
            assert {answer.status_code for answer in answers} == {503}
            await check_away(client)
        await until(client, 200)
        assert len((await client.get("/v1/meters")).json()["items"]) == 1


async def test_a_sidecar_that_is_ended_while_it_starts_leaves_no_connection(
    database_url: str, database: asyncpg.Connection
) -> None:
    """At whatever moment."""
    has_started, patience_s = False, 0.0
    while not has_started:
        patience_s += 0.0005
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s), open_database(database_url):
                has_started = True

    async def is_alone() -> bool:
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND client_port > 0"
        return bool(await database.fetchval(sessions) == 1)

    await eventually(is_alone)


@contextmanager
def frozen(server: PrivatePostgres) -> Iterator[None]:
    """Its processes take no steps: connections stand and nothing answers."""
    parent = psutil.Process(server.process.pid)
    family = [parent, *parent.children(recursive=True)]
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            process.resume()


def test_a_schema_that_is_not_there_makes_it_unready(postgres: PrivatePostgres) -> None:
    postgres.create_database("without_schema")
    with client_of(build_app(settings(postgres.url("without_schema")))) as client:
        problem = check_problem(client.get("/readyz"), 503)
    assert problem["faults"] == ["the database has no schema yet; run: python -m daemon migrate"]
