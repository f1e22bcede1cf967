"""Errors as the client sees them: RFC 9457 problem documents, one shape for every route.

A handler raises `ProblemError`; whatever else leaves it is a bug of ours, answered with 500 and the id under which the
log has the rest. Nothing of the inside (a trace, a statement, a password) is in an answer.
"""

import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sql.errors import sqlstate
from sql.links import Link

log = structlog.get_logger("fleetwatt.api")

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
CLIENT_GONE = 499
"""Logged where the client went away before its request had come; nobody receives it."""

TITLES: dict[int, tuple[str, str]] = {
    400: ("bad-request", "The request is not sound HTTP"),
    401: ("unauthorized", "A token is needed"),
    403: ("forbidden", "This is not allowed"),
    404: ("not-found", "There is no such thing"),
    405: ("method-not-allowed", "The method is not allowed here"),
    408: ("request-timeout", "The request came too slowly"),
    409: ("conflict", "It contradicts what is stored"),
    410: ("gone", "It was there and is not any more"),
    413: ("content-too-large", "The body is too large"),
    415: ("unsupported-media-type", "The body is of another media type"),
    421: ("misdirected", "The request was meant for another host"),
    422: ("invalid", "The request is not valid"),
    431: ("header-fields-too-large", "The head of the request is too large"),
    500: ("internal", "Something is wrong on our side"),
    503: ("unavailable", "Not available at the moment"),
}
"""Status -> the last part of `type`, and `title`."""


class Fault(Struct, frozen=True):
    """One thing that is wrong with a request."""

    where: Annotated[str, Meta(description="path, query or body", examples=["query"])]
    name: Annotated[str, Meta(description="the parameter or field", examples=["limit"])]
    detail: Annotated[str, Meta(examples=["`limit` is '0'; allowed: a whole number from 1 to 1000"])]


class BadItem(Struct, frozen=True):
    """One reading of a body that was not stored."""

    index: Annotated[int, Meta(ge=0, description="its place in the body, from 0")]
    reason: Annotated[str, Meta(description="one of the reasons of docs/readings.md", examples=["out_of_range"])]
    detail: Annotated[str, Meta(examples=["`soc` is 101; allowed: 0 to 100"])]


class IngestReport(Struct, frozen=True, rename="camel"):
    """What became of the readings of a body. `received` = `stored` + `duplicate` + `rejected`."""

    received: Annotated[int, Meta(ge=0)]
    stored: Annotated[int, Meta(ge=0)]
    duplicate: Annotated[int, Meta(ge=0, description="there already, with the same values")]
    rejected: Annotated[int, Meta(ge=0)]
    errors: Annotated[list[BadItem], Meta(description="the first of those that were rejected")]
    errors_omitted: Annotated[int, Meta(ge=0, description="how many more were rejected")]


class Problem(Struct, frozen=True, kw_only=True, rename="camel"):
    """A problem document (RFC 9457)."""

    type: Annotated[str, Meta(examples=["urn:fleetwatt:problem:invalid"])]
    title: Annotated[str, Meta(examples=["The request is not valid"])]
    status: Annotated[int, Meta(ge=400, le=599, examples=[422])]
    detail: Annotated[str, Meta(description="a sentence about this occurrence")]
    request_id: Annotated[str, Meta(description="also in the header X-Request-Id and in the log")]
    errors: Annotated[list[Fault], Meta(description="each thing that is wrong with the request")] | UnsetType = UNSET
    link: Annotated[Link, Meta(description="409: the link that is in the way")] | UnsetType = UNSET
    report: Annotated[IngestReport, Meta(description="what became of the readings so far")] | UnsetType = UNSET
    faults: Annotated[list[str], Meta(description="503: what keeps the sidecar from its work")] | UnsetType = UNSET


class ProblemError(Exception):
    """The request ends with this problem."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        """`members` are the optional members of `Problem`."""
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members


def unavailable(detail: str, **members: Any) -> ProblemError:
    """503, and when to come again."""
    return ProblemError(503, detail, {"Retry-After": str(RETRY_AFTER_S)}, **members)


def invalid(where: str, name: str, detail: str) -> ProblemError:
    """422 with one fault."""
    return ProblemError(422, detail, errors=[Fault(where, name, detail)])


def new_request_id() -> str:
    """An id that is unique enough to find a line in the log."""
    return secrets.token_hex(8)


def request_id_of(request: Request) -> str:
    """The id that `api.access` gave this request."""
    found = request.scope.get("state", {}).get("request_id")
    return found if isinstance(found, str) else new_request_id()


def document(error: ProblemError, request_id: str) -> bytes:
    """The problem as JSON."""
    slug, title = TITLES.get(error.status) or ("http", HTTPStatus(error.status).phrase)
    problem = Problem(
        type=f"urn:fleetwatt:problem:{slug}",
        title=title,
        status=error.status,
        detail=error.detail,
        request_id=request_id,
        **error.members,
    )
    return msgspec.json.encode(problem)


def respond(error: ProblemError, request_id: str) -> Response:
    """The answer to a request that ends with a problem."""
    return Response(document(error, request_id), error.status, {**error.headers, "Content-Type": MEDIA_TYPE})


def respond_to_bug(error: Exception, request_id: str) -> Response:
    """500 for the client, the trace for the log."""
    log.error("request failed", request_id=request_id, sqlstate=sqlstate(error), exc_info=error)
    detail = f"Something went wrong here; the log has it under the request id {request_id}"
    return respond(ProblemError(500, detail), request_id)


async def on_problem(request: Request, error: Exception) -> Response:
    """Starlette's hook for `ProblemError`."""
    assert isinstance(error, ProblemError)  # noqa: S101 - what the hook is registered for
    return respond(error, request_id_of(request))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's hook for what its router raises: 404 and 405."""
    assert isinstance(error, HTTPException)  # noqa: S101 - what the hook is registered for
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    details = {
        404: f"There is nothing at {_shown(request.url.path)}; GET /openapi.json says what there is",
        405: f"{request.method} is not allowed at {_shown(request.url.path)}; allowed: {headers.get('Allow')}",
    }
    detail = details.get(error.status_code, error.detail)
    return respond(ProblemError(error.status_code, detail, headers), request_id_of(request))


def _shown(path: str) -> str:
    text = ascii(path)[1:-1]
    return text if len(text) <= 200 else f"{text[:197]}..."
