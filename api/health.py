"""`/livez`, `/readyz`, `/health` and `/metrics` for machines.

Ready means that requests can be answered: the database answers and has this program's schema.
"""

import time
from typing import Literal

from msgspec import Struct
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from api.contract import JSON, Answer, Call, Operation, Sidecar, answer
from api.errors import unavailable
from api.params import NoQuery

_STARTED_AT_S = time.monotonic()


class Alive(Struct, frozen=True):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(Struct, frozen=True):
    """Requests can be answered."""

    status: Literal["ready"] = "ready"


class Health(Struct, frozen=True, rename="camel"):
    """How the sidecar is."""

    status: Literal["ok"]
    database: Literal["ok"]
    uptime_s: int


async def livez(_: Call[NoQuery, NoQuery, None]) -> Response:
    """Whether the process answers."""
    return answer(Alive())


async def readyz(call: Call[NoQuery, NoQuery, None]) -> Response:
    """Whether requests can be answered."""
    _check(call.sidecar)
    return answer(Ready())


async def health(call: Call[NoQuery, NoQuery, None]) -> Response:
    """The same with more words."""
    _check(call.sidecar)
    return answer(Health("ok", "ok", int(time.monotonic() - _STARTED_AT_S)))


async def metrics(call: Call[NoQuery, NoQuery, None]) -> Response:
    """For Prometheus."""
    return Response(generate_latest(call.sidecar.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _check(sidecar: Sidecar) -> None:
    if faults := [fault for fault in (sidecar.database.fault, sidecar.database.schema_fault) if fault]:
        public = ["the database does not answer" if fault is sidecar.database.fault else fault for fault in faults]
        raise unavailable(f"Not ready: {'; '.join(public)}", faults=public)


OPERATIONS = (
    Operation(
        id="livez",
        method="GET",
        path="/livez",
        tag="Operations",
        summary="Whether the process answers",
        handler=livez,
        role=None,
        is_versioned=False,
        answers={200: Answer("It does", Alive, {JSON: Alive()})},
    ),
    Operation(
        id="readyz",
        method="GET",
        path="/readyz",
        tag="Operations",
        summary="Whether requests can be answered",
        handler=readyz,
        role=None,
        is_versioned=False,
        answers={200: Answer("They can", Ready, {JSON: Ready()})},
    ),
    Operation(
        id="health",
        method="GET",
        path="/health",
        tag="Operations",
        summary="How the sidecar is",
        handler=health,
        role=None,
        is_versioned=False,
        answers={200: Answer("Well", Health, {JSON: Health("ok", "ok", 86400)})},
    ),
    Operation(
        id="metrics",
        method="GET",
        path="/metrics",
        tag="Operations",
        summary="Metrics in Prometheus' format",
        handler=metrics,
        is_versioned=False,
        answers={200: Answer("Metrics", str, media_types=("text/plain",))},
    ),
)
