"""The form of a route: what Starlette needs to serve it and what the OpenAPI document says of it, in one place.

`api.routes` is the table. A handler is given a `Call` whose path, query and body are valid already, and raises
`ProblemError` for what only it can know.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from api.auth import Gate, Role
from api.cache import Cache
from api.database import Database
from api.metrics import Metrics
from api.params import NoQuery
from api.settings import ApiSettings
from daemon.readings import ReceiptClock
from sql.flood import Flood
from sql.partitions import Days

P = TypeVar("P")
Q = TypeVar("Q")
B = TypeVar("B")

JSON = "application/json"
CSV = "text/csv"
NDJSON = "application/x-ndjson"

Method: TypeAlias = Literal["GET", "POST", "PUT", "DELETE"]


class Sidecar(Struct, frozen=True):
    """What the process has while it runs."""

    settings: ApiSettings
    database: Database
    gate: Gate
    cache: Cache
    metrics: Metrics
    clock: ReceiptClock
    days: Days
    flood: Flood
    replaying: asyncio.Lock
    """One replay at a time: two would each tell of what the other stored."""
    openapi: bytes
    """The OpenAPI document."""


class Call(Struct, Generic[P, Q, B], frozen=True):
    """One request, checked."""

    sidecar: Sidecar
    request: Request
    path: P
    query: Q
    body: B


class Answer(Struct, frozen=True):
    """One way in which a route answers when all went well."""

    description: str
    type: Any = None
    """What the JSON is; None where there is none."""
    examples: dict[str, Any] = {}
    """Media type -> example."""
    media_types: tuple[str, ...] = (JSON,)
    headers: dict[str, str] = {}
    """Name -> what it says."""


class Operation(Struct, frozen=True, kw_only=True):
    """One method of one path."""

    id: str
    method: Method
    path: str
    tag: str
    summary: str
    description: str = ""
    handler: Callable[[Call[Any, Any, Any]], Awaitable[Response]]
    answers: dict[int, Answer]
    role: Role | None = Role.read
    from_browser: bool = False
    """Whether the token may also come as the password of HTTP Basic."""
    path_type: type[Struct] = NoQuery
    query: type[Struct] = NoQuery
    body: type[Struct] | None = None
    """The type of a small JSON body, which is read before the handler is called."""
    body_example: Any = None
    body_media: dict[str, dict[str, Any]] = {}
    """Media type -> schema and examples of a body that the handler reads by itself."""
    problems: tuple[int, ...] = ()
    """Statuses of problems beside those that follow from the fields above."""
    is_versioned: bool = True
    """Whether it is below /v1."""

    @property
    def full_path(self) -> str:
        """The path without the alias /api."""
        return f"/v1{self.path}" if self.is_versioned else self.path

    @property
    def problem_statuses(self) -> list[int]:
        """Every error status that this operation can answer with."""
        statuses = {400, 421, 422, 431, 500, 503, *self.problems}
        if self.role:
            statuses |= {401, 403}
        if self.body or self.body_media:
            statuses |= {408, 413, 415}
        return sorted(statuses)


class Page(Struct, Generic[P], frozen=True):
    """A page of a list. `next` is the cursor of the page behind it; null: this is the last one."""

    items: list[P]
    next: str | None


_encode = msgspec.json.Encoder().encode


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(_encode(value), status, headers, JSON)
