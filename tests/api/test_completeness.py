"""Completeness over HTTP: the form of the answer, its bounds, and who is not known."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.completeness import SPAN_MAX
from tests.api.conftest import MINUTE, NOW, check_problem, meter, vehicle
from tests.api.test_routes import at, send

TOP = NOW.replace(minute=0, second=0) - timedelta(hours=4)


@pytest.mark.parametrize(("plural", "device_id", "reading"), [("meters", "m-1", meter), ("vehicles", "v-1", vehicle)])
def test_what_came_what_was_expected_and_the_gap(
    client: TestClient, plural: str, device_id: str, reading: Callable[..., dict[str, Any]]
) -> None:
    send(client, [reading(TOP + n * MINUTE) for n in range(180) if not 70 <= n < 100])

    found = client.get(f"/v1/{plural}/{device_id}/completeness?from={at(TOP)}&to={at(TOP + 180 * MINUTE)}").json()

    hours = [TOP + n * 60 * MINUTE for n in range(4)]
    assert found == {
        "id": device_id, "from": at(TOP), "to": at(hours[3]), "came": 150, "expected": 180, "completeness": 0.833333,
        "cadenceS": 60.0, "lastReadingAt": at(TOP + 179 * MINUTE), "gapsOmitted": 0,
        "hours": [
            {"from": at(hours[0]), "to": at(hours[1]), "came": 60, "expected": 60, "cadenceS": 60.0},
            {"from": at(hours[1]), "to": at(hours[2]), "came": 30, "expected": 60, "cadenceS": 60.0},
            {"from": at(hours[2]), "to": at(hours[3]), "came": 60, "expected": 60, "cadenceS": 60.0},
        ],
        "gaps": [{"from": at(TOP + 69 * MINUTE), "to": at(TOP + 100 * MINUTE), "missing": 30}],
    }  # fmt: skip


def test_left_out_the_window_is_the_last_24_hours(client: TestClient) -> None:
    send(client, [meter(NOW - n * MINUTE) for n in range(1500)])
    found = client.get("/api/v1/meters/m-1/completeness").json()
    assert datetime.fromisoformat(found["to"]) >= NOW
    assert len(found["hours"]) in (24, 25)
    assert found["hours"][0]["from"] == found["from"]
    assert found["hours"][1]["from"].endswith(":00:00Z")
    assert found["hours"][-1]["to"] == found["to"]
    assert found["completeness"] > 0.99


def test_without_a_cadence_nothing_is_expected(client: TestClient) -> None:
    send(client, [vehicle()])
    found = client.get("/v1/vehicles/v-1/completeness").json()
    assert (found["came"], found["expected"], found["completeness"], found["cadenceS"]) == (1, None, None, None)
    assert {hour["expected"] for hour in found["hours"]} == {None}


def test_nobody_knows_a_device_that_sent_nothing(client: TestClient) -> None:
    send(client, [meter(), vehicle()])
    check_problem(client.get("/v1/meters/v-1/completeness"), 404)
    check_problem(client.get("/v1/vehicles/m-1/completeness"), 404)


@pytest.mark.parametrize("plural", ["meters", "vehicles"])
def test_a_window_that_is_empty_or_too_long_is_refused(shared: TestClient, plural: str) -> None:
    path = f"/v1/{plural}/d/completeness"
    too_long = check_problem(shared.get(f"{path}?from={at(NOW - SPAN_MAX - MINUTE)}&to={at(NOW)}"), 422)
    assert "allowed: 31 days" in too_long["detail"]
    assert "is not before `to`" in check_problem(shared.get(f"{path}?from={at(NOW)}&to={at(NOW)}"), 422)["detail"]
    check_problem(shared.get(f"{path}?from={at(NOW - SPAN_MAX)}&to={at(NOW)}"), 404)
