"""The sidecar as an ASGI application: the table of routes served, each request checked before its handler sees it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from api import bodies, params
from api.access import Access
from api.auth import Gate
from api.cache import Cache
from api.contract import JSON, Call, Operation, Sidecar
from api.database import open_database
from api.errors import (
    CLIENT_GONE,
    ProblemError,
    on_problem,
    request_id_of,
    respond,
    respond_to_bug,
)
from api.metrics import Metrics
from api.openapi import document
from api.routes import ALIAS, by_path
from api.settings import ApiSettings
from api.web import pages, site
from daemon.readings import ReceiptClock
from sql.flood import Flood
from sql.partitions import Days

Endpoint = Callable[[Request], Awaitable[Response]]


def build_app(settings: ApiSettings) -> Starlette:
    """The application; raises SettingsError where the tokens file cannot be used."""
    metrics = Metrics()
    gate = Gate(settings.api_tokens_file)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with open_database(settings.database_url) as database:
            app.state.sidecar = Sidecar(
                settings=settings,
                database=database,
                gate=gate,
                cache=Cache(settings.analytics_cache_ttl_s, metrics.cache),
                metrics=metrics,
                clock=ReceiptClock(),
                days=Days(),
                flood=Flood(settings.rejections_per_s_max, metrics.rejections_not_kept),
                replaying=asyncio.Lock(),
                openapi=msgspec.json.encode(document()),
            )
            metrics.watch(lambda: database.connections, lambda: database.fault is None)
            async with site.open_site(app.state.sidecar) as app.state.site:
                yield

    app = Starlette(
        routes=[*_routes(), *site.routes(lambda: app.state.site)],
        middleware=[Middleware(Access, metrics=metrics, only_this_machine=gate.is_open), *_cors(settings)],
        exception_handlers={HTTPException: pages.on_http_exception, ProblemError: on_problem},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _routes() -> list[Route]:
    routes: list[Route] = []
    for path, by_method in by_path().items():
        endpoint = _endpoint(path, by_method)
        routes += [_Path(prefix + path, endpoint, methods=list(by_method)) for prefix in ("", ALIAS)]
    return routes


class _Path(Route):
    """Answers for its path whatever the method is: further down, a parameter might fit the path as well."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the path is this one."""
        match, found = super().matches(scope)
        return (Match.FULL if match is Match.PARTIAL else match), found


def _endpoint(path: str, by_method: dict[str, Operation]) -> Endpoint:
    async def answer(request: Request) -> Response:
        operation = by_method["GET" if request.method == "HEAD" else request.method]
        request.scope["state"]["route"] = path
        try:
            return await _perform(operation, request)
        except ProblemError as error:
            return respond(error, request_id_of(request))
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except Exception as error:
            return respond_to_bug(error, request_id_of(request))

    return answer


async def _perform(operation: Operation, request: Request) -> Response:
    sidecar: Sidecar = request.app.state.sidecar
    request.scope["state"]["token"] = _admit(operation, request, sidecar)
    call: Call[Any, Any, Any] = Call(
        sidecar,
        request,
        params.path(operation.path_type, request.path_params),
        params.query(operation.query, request.query_params.multi_items()),
        await _body(operation, request),
    )
    return await operation.handler(call)


def _admit(operation: Operation, request: Request, sidecar: Sidecar) -> str | None:
    """The name of the token; what is for browsers takes the pages' session, too. Raises ProblemError 401 or 403."""
    if operation.from_browser and operation.role and "authorization" not in request.headers:
        visitor = request.app.state.site.visitors.of(request)
        if visitor and visitor.is_signed_in and visitor.may(operation.role):
            return str(visitor.name)
    return sidecar.gate.admit(request, operation.role, from_browser=operation.from_browser)


async def _body(operation: Operation, request: Request) -> Any:
    if operation.body is None:
        return None
    bodies.check_media_type(request, (JSON,))
    return params.body(operation.body, await bodies.whole(request))


class _Cors(CORSMiddleware):
    """Starlette's, with a problem document for a preflight that is refused."""

    def preflight_response(self, request_headers: Any) -> Response:
        """The answer to OPTIONS."""
        found = super().preflight_response(request_headers)
        return found if found.status_code < 400 else _Refused(str(bytes(found.body), "utf-8"))


class _Refused(Response):
    """A preflight that is refused: a problem document under the id of its request."""

    def __init__(self, detail: str) -> None:
        super().__init__(status_code=403)
        self._problem = ProblemError(403, detail)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await respond(self._problem, request_id_of(Request(scope)))(scope, receive, send)


def _cors(settings: ApiSettings) -> list[Middleware]:
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            _Cors,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "If-None-Match"],
            expose_headers=["ETag", "Location", "Retry-After", "X-Request-Id"],
            max_age=600,
        )
    ]
