"""The sidecar within the test's own loop: its application, on a database of the test's own."""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from api.app import build_app
from api.settings import ApiSettings
from sql.settings import read
from tests.tokens import write_tokens

NOW = datetime.now(UTC).replace(microsecond=0)
"""Near enough to the time of the test."""
MINUTE = timedelta(minutes=1)


def settings(database_url: str, **changes: str) -> ApiSettings:
    """Settings as from environment variables."""
    return read(ApiSettings, {"DATABASE_URL": database_url, **changes})


@contextmanager
def client_of(app: Starlette) -> Iterator[TestClient]:
    """A client of the application, which runs for the time of the block."""
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(database_url: str) -> Iterator[TestClient]:
    """A client of a sidecar without tokens and without a cache that keeps anything."""
    with client_of(build_app(settings(database_url, ANALYTICS_CACHE_TTL_S="0"))) as client:
        yield client


@pytest.fixture(scope="module")
def shared(shared_url: str) -> Iterator[TestClient]:
    """A client of a sidecar on that database."""
    with client_of(build_app(settings(shared_url, ANALYTICS_CACHE_TTL_S="0"))) as client:
        yield client


@asynccontextmanager
async def running(app: Starlette) -> AsyncIterator[httpx2.AsyncClient]:
    """A client in the test's own loop, for what happens at the same time."""
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


@pytest.fixture
def tokens(tmp_path: Path) -> Callable[[], tuple[str, dict[str, str]]]:
    """Makes a tokens file with one token of each role; gives its path and the tokens."""
    return partial(write_tokens, tmp_path)


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def meter(ts: datetime | None = NOW, **changes: Any) -> dict[str, Any]:
    """A meter's reading."""
    return _reading({"meterId": "m-1", "kwhConsumedAc": 1.5, "voltage": 230.0}, ts, changes)


def vehicle(ts: datetime | None = NOW, **changes: Any) -> dict[str, Any]:
    """A vehicle's reading."""
    return _reading({"vehicleId": "v-1", "soc": 80.0, "kwhDeliveredDc": 1.25, "batteryTemp": 21.5}, ts, changes)


def _reading(fields: dict[str, Any], ts: datetime | None, changes: Mapping[str, Any]) -> dict[str, Any]:
    stamp = {"timestamp": ts.isoformat()} if ts else {}
    return {key: value for key, value in {**fields, **stamp, **changes}.items() if value is not ...}


def check_problem(response: httpx2.Response, status: int) -> dict[str, Any]:
    """Whether a response is a problem document of this status; gives the document."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = json.loads(response.content)
    assert found["status"] == status
    assert found["type"].startswith("urn:fleetwatt:problem:")
    assert found["title"]
    assert found["detail"]
    assert found["requestId"] == response.headers["x-request-id"]
    return found
