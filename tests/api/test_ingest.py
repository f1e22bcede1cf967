"""Readings over HTTP: one, many, NDJSON, good, bad and mixed, with a report that is right about each."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from starlette.testclient import TestClient

from api import ingest
from api.app import build_app
from sql import store
from tests.api.conftest import MINUTE, NOW, check_problem, client_of, meter, settings, vehicle

JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
numbers = itertools.count(1)


def post(client: TestClient, value: Any, path: str = "/v1/ingest") -> Any:
    return client.post(path, content=value if isinstance(value, bytes) else json.dumps(value), headers=JSON)


def counts(report: dict[str, Any]) -> tuple[int, int, int, int]:
    return report["received"], report["stored"], report["duplicate"], report["rejected"]


def reasons(report: dict[str, Any]) -> list[tuple[int, str]]:
    return [(error["index"], error["reason"]) for error in report["errors"]]


async def rows(database: asyncpg.Connection, table: str) -> int:
    return int(await database.fetchval(f"SELECT count(*) FROM {table}"))


@pytest.mark.parametrize("path", ["/v1/ingest", "/v1/telemetry", "/api/v1/ingest", "/api/v1/telemetry"])
async def test_one_reading_is_stored_and_answered_with_201(
    client: TestClient, database: asyncpg.Connection, path: str
) -> None:
    response = post(client, vehicle(), path)
    assert response.status_code == 201
    assert response.json() == {
        "received": 1, "stored": 1, "duplicate": 0, "rejected": 0, "errors": [], "errorsOmitted": 0,
    }  # fmt: skip
    stored = await database.fetchrow("SELECT vehicle_id, ts, soc, kwh_delivered_dc, battery_temp FROM vehicle_reading")
    assert tuple(stored) == ("v-1", NOW, 80.0, 1.25, 21.5)
    assert await rows(database, "vehicle_status") == 1


def known(client: TestClient, device_id: str) -> tuple[int, ...]:
    return tuple(client.get(f"/v1/{kind}/{device_id}").status_code for kind in ("meters", "vehicles"))


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        (meter(), (1, 0)),
        (vehicle(), (0, 1)),
        (meter(type="METER"), (1, 0)),
        (vehicle(type="Vehicle", voltage=400), (0, 1)),
        (vehicle(voltage=400), (0, 1)),
        (meter(soc=3), (1, 0)),
        ({**meter(), **vehicle(), "type": "meter"}, (1, 0)),
        ({**meter(), **vehicle(), "type": "vehicle"}, (0, 1)),
        (meter(vehicleId="v-1"), (1, 0)),
        (meter(voltage="230.5", timestamp=str(NOW.timestamp())), (1, 0)),
        (meter(None), (1, 0)),
    ],
)
def test_the_kind_is_told_by_type_or_by_the_fields(
    shared: TestClient, reading: dict[str, Any], expected: tuple[int, int]
) -> None:
    device_id = f"d-{next(numbers)}"
    reading = {key: device_id if key.endswith("Id") else value for key, value in reading.items()}
    assert post(shared, reading).status_code == 201
    assert known(shared, device_id) == tuple(200 if there else 404 for there in expected)


@pytest.mark.parametrize(
    ("reading", "reason"),
    [
        (b"", None),
        (b"[]", None),
        (b" \n", None),
        (b"null", "wrong_type"),
        (b"nonsense", "malformed_json"),
        (b"\xff\xfe", "malformed_json"),
        (b"{", "malformed_json"),
        (b"[", "malformed_json"),
        (b"[[", "malformed_json"),
        (b"[" * 100_000, "malformed_json"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "malformed_json"),
        (b"[1]", "wrong_type"),
        (b"{}", "missing_field"),
        (meter(meterId=...), "missing_field"),
        (meter(meterId=None), "missing_field"),
        ({**meter(), **vehicle()}, "missing_field"),
        (meter(meterId="m 1"), "bad_id"),
        (meter(meterId=7), "wrong_type"),
        (meter(type="car"), "wrong_type"),
        (meter(type=7), "wrong_type"),
        (meter(type="vehicle"), "missing_field"),
        (meter(voltage=-1), "out_of_range"),
        (meter(voltage=...), "missing_field"),
        (meter(voltage=True), "wrong_type"),
        (meter(timestamp="yesterday"), "bad_timestamp"),
        (meter(NOW + 10 * MINUTE), "clock_ahead"),
        (meter(NOW - 500 * 24 * 60 * MINUTE), "too_old"),
        (meter(timestamp=0), "too_old"),
    ],
)
async def test_nothing_good_is_422_and_is_kept_as_a_rejection(
    shared: TestClient, shared_url: str, reading: Any, reason: str | None
) -> None:
    expected = {reason} if reason else set()
    report = check_problem(post(shared, reading), 422)["report"]
    assert (report["stored"], report["duplicate"]) == (0, 0)
    assert {error["reason"] for error in report["errors"]} == expected
    database = await asyncpg.connect(shared_url)
    kept = await database.fetch("DELETE FROM rejection RETURNING reason")
    await database.close()
    assert {row["reason"] for row in kept} == expected


async def test_a_mixed_array_is_200_with_a_report_of_each_bad_item(
    client: TestClient, database: asyncpg.Connection
) -> None:
    items = [meter(), 7, vehicle(soc=101), vehicle(), meter(NOW - MINUTE), {"nested": {"a": [1, "}]"]}}]
    response = post(client, items)
    assert response.status_code == 200
    report = response.json()
    assert counts(report) == (6, 3, 0, 3)
    assert reasons(report) == [(1, "wrong_type"), (2, "out_of_range"), (5, "missing_field")]
    assert report["errors"][1]["detail"] == "`soc` is 101; allowed: 0 to 100"
    assert await rows(database, "meter_reading") + await rows(database, "vehicle_reading") == 3
    topics = [row["topic"] for row in await database.fetch("SELECT topic FROM rejection ORDER BY id")]
    assert topics == ["http"] * 3


async def test_ndjson_is_a_reading_a_line(client: TestClient, database: asyncpg.Connection) -> None:
    lines = [json.dumps(meter()), "", "  ", json.dumps(vehicle()), "{broken", json.dumps(meter(NOW - MINUTE))]
    response = client.post("/v1/ingest", content="\r\n".join(lines), headers=NDJSON)
    assert (response.status_code, counts(response.json())) == (200, (4, 3, 0, 1))
    assert reasons(response.json()) == [(2, "malformed_json")]
    assert await rows(database, "meter_reading") == 2


def test_objects_one_after_another_are_taken_as_json_too(client: TestClient) -> None:
    body = json.dumps(meter(), indent=1) + json.dumps(vehicle()) + "\n  " + json.dumps(meter(NOW - MINUTE), indent=2)
    response = client.post("/v1/ingest", content=body, headers=JSON)
    assert (response.status_code, counts(response.json())) == (201, (3, 3, 0, 0))


def test_what_is_there_already_is_a_duplicate_and_no_error(client: TestClient) -> None:
    assert counts(post(client, [meter(), meter(), vehicle()]).json()) == (3, 2, 1, 0)
    response = post(client, [meter(), vehicle(), vehicle(NOW - MINUTE)])
    assert response.status_code == 201
    assert counts(response.json()) == (3, 1, 2, 0)


async def test_other_values_at_the_same_time_are_a_conflict_wherever_they_meet(
    client: TestClient, database: asyncpg.Connection
) -> None:
    within = post(client, [meter(), vehicle(), meter(voltage=1)])
    assert (within.status_code, reasons(within.json())) == (200, [(2, "conflict")])
    later = check_problem(post(client, meter(voltage=2)), 422)["report"]
    assert reasons(later) == [(0, "conflict")]
    assert await database.fetchval("SELECT voltage FROM meter_reading") == 230.0
    kept = await database.fetch("SELECT topic, reason FROM rejection")
    assert [tuple(row) for row in kept] == [("meters/m-1/reading", "conflict")] * 2


async def test_a_row_that_the_database_refuses_stands_alone(client: TestClient, database: asyncpg.Connection) -> None:
    await database.execute("ALTER TABLE meter_reading ADD CONSTRAINT odd CHECK (voltage <> 13)")
    response = post(client, [meter(NOW - n * MINUTE, voltage=13 if n in (3, 7) else 230) for n in range(10)])
    assert response.status_code == 200
    assert counts(response.json()) == (10, 8, 0, 2)
    assert reasons(response.json()) == [(3, "refused_by_database"), (7, "refused_by_database")]


def test_the_report_is_bounded_and_the_counts_are_not(client: TestClient) -> None:
    report = check_problem(post(client, [0] * 250), 422)["report"]
    assert counts(report) == (250, 0, 0, 250)
    assert (len(report["errors"]), report["errorsOmitted"]) == (ingest.ERRORS_SHOWN_MAX, 250 - ingest.ERRORS_SHOWN_MAX)


def test_indexes_and_counts_hold_across_batches(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "BATCH_ROWS", 7)
    items = [meter(NOW - n * MINUTE, **({"voltage": -1} if n % 10 == 9 else {})) for n in range(50)]
    response = post(client, [*items, items[0]])
    assert counts(response.json()) == (51, 45, 1, 5)
    assert reasons(response.json()) == [(n, "out_of_range") for n in (9, 19, 29, 39, 49)]


@pytest.mark.parametrize(
    ("tail", "index"),
    [(b"", 1), (b",", 2), (b"]]", 2), (b"] {}", 2), (b",]", 2), (b' {"a":1}]', 1), (b', {"a": ', 2)],
)
def test_what_is_good_before_the_rubbish_is_stored(client: TestClient, tail: bytes, index: int) -> None:
    body = b"[" + json.dumps(meter()).encode() + b", " + json.dumps(vehicle()).encode() + tail
    report = post(client, body).json()
    assert report["stored"] == index
    assert reasons(report) == [(index, "malformed_json")]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_another_media_type_is_415(shared: TestClient, content_type: str) -> None:
    response = shared.post("/v1/ingest", content=b"{}", headers={"Content-Type": content_type})
    assert "application/x-ndjson" in check_problem(response, 415)["detail"]


def test_a_compressed_body_is_415(shared: TestClient) -> None:
    response = shared.post("/v1/ingest", content=b"{}", headers={**JSON, "Content-Encoding": "gzip"})
    check_problem(response, 415)


def test_a_body_beyond_the_limit_is_413_whether_it_says_so_or_not(database_url: str) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"["
        for n in range(40):
            yield json.dumps(meter(NOW - n * MINUTE)).encode() + b","

    with client_of(build_app(settings(database_url, API_BODY_BYTES_MAX="2048"))) as client:
        assert "report" in check_problem(post(client, b" " * 2049), 413)
        check_problem(client.post("/v1/ingest", content=pieces(), headers=JSON), 413)
        assert check_problem(post(client, b" " * 2048), 422)


def test_a_reading_that_does_not_end_is_too_large(client: TestClient) -> None:
    for headers in (JSON, NDJSON):
        body = json.dumps(meter()).encode() + b'\n{"a": "' + b"x" * 3_000_000
        response = client.post("/v1/ingest", content=body, headers=headers)
        assert reasons(response.json()) == [(1, "too_large")]


async def test_a_batch_that_fails_behind_its_first_kind_says_that_this_is_stored(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.copy

    async def meters_only(connection: Any, kind: Any, *arguments: Any) -> None:
        if kind is not store.METER:
            raise ConnectionResetError("the database went away")
        await real(connection, kind, *arguments)

    async def fails(*_: Any) -> None:
        raise ConnectionResetError("the database went away")

    monkeypatch.setattr(store, "copy", meters_only)
    monkeypatch.setattr(store, "insert", fails)
    problem = check_problem(post(client, [meter(), meter(NOW - MINUTE), vehicle(), 7]), 503)
    assert counts(problem["report"]) == (2, 2, 0, 0)
    assert known(client, "m-1") == (200, 404)
    assert 'fleetwatt_http_readings_total{result="stored"} 2.0' in client.get("/metrics").text


async def test_a_request_that_fails_in_its_middle_says_what_is_stored_and_may_be_sent_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "BATCH_ROWS", 10)
    items = [meter(NOW - n * MINUTE) for n in range(30)]
    real, calls = store.copy, itertools.count(1)

    async def fails_at_last(*arguments: Any) -> None:
        if next(calls) == 3:
            raise ConnectionResetError("the database went away")
        await real(*arguments)

    async def fails(*_: Any) -> None:
        raise ConnectionResetError("the database went away")

    with monkeypatch.context() as broken:
        broken.setattr(store, "copy", fails_at_last)
        broken.setattr(store, "insert", fails)
        response = post(client, items)
    problem = check_problem(response, 503)
    assert int(response.headers["retry-after"]) > 0
    assert counts(problem["report"]) == (20, 20, 0, 0)
    assert counts(post(client, items).json()) == (30, 10, 20, 0)
