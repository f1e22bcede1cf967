"""The sidecar as a process: what only a real socket shows."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import uvicorn
from uvicorn.server import ServerState

from api import access, bodies, server
from api.app import build_app
from api.server import HEAD_BYTES_MAX
from dev.house import PATIENCE_S, eventually
from dev.processes import ProcessError
from tests.api.conftest import NOW, check_problem, meter, settings, vehicle
from tests.api.server import Sidecar, sidecar
from tests.conftest import Connect

READINGS = 100_000


@pytest.fixture(scope="module")
def served(shared_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One process for all tests of this file."""
    with sidecar(tmp_path_factory.mktemp("api"), shared_url) as served:
        yield served


def talk(served: Sidecar, request: bytes, patience_s: float = 10) -> tuple[bytes, dict[str, Any]]:
    """What comes back for these bytes: the status line, and the JSON."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=patience_s) as connection:
        connection.sendall(request)
        found = b""
        while piece := connection.recv(65536):
            found += piece
    head, _, body = found.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    return head.split(b"\r\n")[0], json.loads(body)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Large: " + b"x" * (HEAD_BYTES_MAX + 1) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Large: " + b"x" * (HEAD_BYTES_MAX + 1),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(3000)) + b"\r\n",
        b"GET /" + b"x" * (HEAD_BYTES_MAX + 1) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_a_head_that_is_too_large_is_431(served: Sidecar, request_bytes: bytes) -> None:
    status, problem = talk(served, request_bytes)
    assert (status, problem["status"]) == (b"HTTP/1.1 431 Request Header Fields Too Large", 431)


def test_a_body_that_comes_with_its_head_is_no_part_of_it(served: Sidecar) -> None:
    content = b"".join(body(300))
    headers = (
        f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\nConnection: close"
    )
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(f"POST /v1/ingest HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n".encode() + content)
        found = b""
        while piece := connection.recv(65536):
            found += piece
    assert len(content) > HEAD_BYTES_MAX
    assert found.startswith(b"HTTP/1.1 201"), found


@pytest.mark.parametrize("request_bytes", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_what_is_no_http_is_400(served: Sidecar, request_bytes: bytes) -> None:
    status, problem = talk(served, request_bytes)
    assert (status, problem["status"]) == (b"HTTP/1.1 400 Bad Request", 400)


@pytest.mark.parametrize(("name", "segment"), [(".", "%252E"), ("..", "%252E%252E")])
async def test_a_device_whose_id_is_a_step_in_a_path_can_be_asked_for(served: Sidecar, name: str, segment: str) -> None:
    async with httpx2.AsyncClient(base_url=f"{served.url}/v1") as client:
        linked = await client.post("/links", json={"vehicleId": name, "meterId": f"m{name}"})
        assert linked.headers["location"] == f"/v1/links/{segment}"
        for path in ("links", "analytics/performance"):
            assert (await client.get(f"/{path}/{segment}")).json()["vehicleId"] == name
        check_problem(await client.get("/vehicles/a%252E"), 422)
        check_problem(await client.get("/vehicles/%252E%252E%252E"), 422)


def body(readings: int) -> Iterator[bytes]:
    """An array of readings, half of them of meters, a piece at a time."""
    for n in range(readings):
        ts = NOW - timedelta(seconds=n // 20)
        make, key = (meter, "meterId") if n % 2 else (vehicle, "vehicleId")
        yield (b"," if n else b"[") + json.dumps({**make(ts), key: f"d-{n % 20}"}).encode()
    yield b"]"


async def in_pieces(readings: int) -> AsyncIterator[bytes]:
    pending = b""
    for piece in body(readings):
        pending += piece
        if len(pending) > 60_000:
            yield pending
            pending = b""
    yield pending


async def test_100_000_readings_in_one_body_need_no_memory_to_match(
    served: Sidecar, shared_url: str, connected: Connect
) -> None:
    process = psutil.Process(served.process.pid)
    async with httpx2.AsyncClient(base_url=served.url, timeout=60) as client:
        headers = {"Content-Type": "application/json"}
        await client.post("/v1/ingest", content=in_pieces(10_000), headers=headers)
        before, most, done = process.memory_info().rss, 0, asyncio.Event()

        async def watch() -> None:
            nonlocal most
            while not done.is_set():
                most = max(most, process.memory_info().rss)
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        response = await client.post("/v1/ingest", content=in_pieces(READINGS), headers=headers)
        done.set()
        await watching
    assert response.status_code == 201
    report = response.json()
    assert (report["stored"], report["duplicate"]) == (READINGS - 10_000, 10_000)
    assert most - before < 12 * 1024 * 1024, f"{(most - before) / 2**20:.1f} MiB"
    database = await connected(shared_url)
    stored = await database.fetchval(
        "SELECT (SELECT count(*) FROM meter_reading) + (SELECT count(*) FROM vehicle_reading)"
    )
    assert stored == READINGS


async def test_a_client_that_goes_away_frees_the_connection_of_its_export(
    served: Sidecar, shared_url: str, connected: Connect
) -> None:
    database = await connected(shared_url)
    await database.execute(
        "INSERT INTO meter_status VALUES ('big', now(), 1, 230, now()) ON CONFLICT DO NOTHING; "
        "SELECT ensure_day('meter_reading', day::date) FROM generate_series(now() - '1 day'::interval, now(), '1 day') "
        "AS day"
    )
    await database.execute(
        "INSERT INTO meter_reading SELECT 'big', now() - n * '0.1 s'::interval, n, 230, now() "
        "FROM generate_series(1, 300000) AS n"
    )

    async def used() -> int:
        return int(
            await database.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'fleetwatt-api' AND state <> 'idle'"
            )
        )

    async def none_used() -> bool:
        return await used() == 0

    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET /v1/meters/big/readings?format=csv HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"200 OK" in await reader.read(4096)
    assert await used() == 1
    writer.transport.abort()
    await eventually(none_used, 5)


async def test_a_client_that_does_not_read_is_let_go(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "SEND_TIMEOUT_S", 0.1)
    never, sent = asyncio.Event(), []

    async def send(message: Any) -> None:
        sent.append(message["type"])
        await never.wait()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/livez",
        "headers": [],
        "query_string": b"",
        "client": None,
    }
    app = build_app(settings(database_url))
    async with app.router.lifespan_context(app), asyncio.timeout(PATIENCE_S):
        await app(scope, receive, send)
    assert sent == ["http.response.start"]


async def test_a_connection_that_sends_no_request_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, http=server.BoundedProtocol, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: server.BoundedProtocol(config, state, {}), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    whole = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    for request in (b"", b"GET / HTTP/1.1\r\nHo", whole):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read(-1)
        assert (b"204" in answer) == (request == whole)
        writer.close()
    listening.close()


async def test_a_log_line_is_json_and_uvicorn_adds_none(served: Sidecar) -> None:
    await asyncio.to_thread(httpx2.get, f"{served.url}/v1/meters/nobody")

    async def is_logged() -> bool:  # which comes after the answer
        text = await asyncio.to_thread(served.process.log.read_text, encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        return any(line["event"] == "request" and line["path"] == "/v1/meters/nobody" for line in lines)

    await eventually(is_logged)


async def test_a_slow_body_is_408_and_what_was_stored_before_is_said(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "WAIT_S", 0.2)
    never = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield json.dumps(meter()).encode()
        await never.wait()
        yield b""

    app = build_app(settings(database_url))
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
        asyncio.timeout(PATIENCE_S),  # which the body would outlast
    ):
        response = await client.post("/v1/ingest", content=slow(), headers={"Content-Type": "application/x-ndjson"})
    assert (response.status_code, response.json()["report"]["received"]) == (408, 0)


async def test_requests_that_wait_for_a_lock_when_it_stops_are_503_and_a_line_each(
    database_url: str, connected: Connect, tmp_path: Path
) -> None:
    paths = ["/v1/links", "/v1/analytics/fleet", "/v1/vehicles/v-1/readings?format=csv", "/links", "/vehicles/v-1"]
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    locker, onlooker = await connected(database_url), await connected(database_url)

    async def all_wait() -> bool:
        return int(await onlooker.fetchval(waiting)) == len(paths)

    with sidecar(tmp_path, database_url) as stopped:  # which also holds that it ends in good order
        async with httpx2.AsyncClient(base_url=stopped.url, timeout=30) as client, asyncio.TaskGroup() as tasks:
            await locker.execute("BEGIN; LOCK TABLE vehicle_meter_link, vehicle_status IN ACCESS EXCLUSIVE MODE")
            answers = [tasks.create_task(client.get(path)) for path in paths]
            await eventually(all_wait)
            stopped.process.signal(signal.SIGTERM)
    for answer in answers:
        assert "is being stopped" in check_problem(answer.result(), 503)["detail"]
    lines = [json.loads(line) for line in stopped.process.log.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if "exception" in line] == []
    told = [line for line in lines if line.get("status") == 503]
    assert sorted(line["path"] for line in told) == sorted(path.partition("?")[0] for path in paths)


def test_a_busy_port_ends_with_exit_code_2(served: Sidecar, tmp_path: Path, shared_url: str) -> None:
    second = Sidecar(tmp_path, shared_url, API_PORT=str(served.port))
    with pytest.raises(ProcessError, match=r"API_HOST and API_PORT are '127\.0\.0\.1' and"):
        second.process.start(lambda: False)
