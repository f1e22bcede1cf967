"""What a page is: who may see it, how it is rendered, and what becomes of errors.

`api.web.site` is the table. A page's handler is given a `Visit` and raises `ProblemError` for what went wrong, which is
shown as a page too, or as the problem document where a script asked.
"""

import gzip
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, quote

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from api import bodies, errors, params
from api.auth import Role
from api.contract import JSON, Sidecar
from api.errors import CLIENT_GONE, TITLES, ProblemError, request_id_of, respond, respond_to_bug
from api.web import units
from api.web.assets import Assets
from api.web.live import Live
from api.web.overview import Watch
from api.web.session import Visitor, Visitors, remember
from sql import __version__, visible
from sql.hours import HOUR

T = TypeVar("T", bound=Struct)

FORM = "application/x-www-form-urlencoded"
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cache-Control": "private, no-cache",
    # Of another site's pages nothing is told; of ours the browser says in Origin whether it came over TLS.
    "Referrer-Policy": "same-origin",
    "Vary": "Cookie, Accept-Encoding",
}
COMPRESS_FROM_BYTES = 1024
FIELDS_MAX = 50
"""Of a form."""
SIGN_IN = "/sign-in"
PROGRAMS = ("/v1/", "/api/")
"""What is below answers programs, whoever asks."""


class Site(Struct, frozen=True):
    """What all pages share while the process runs."""

    sidecar: Sidecar
    visitors: Visitors
    assets: Assets
    watch: Watch
    live: Live


class Visit(Struct, frozen=True):
    """One request for a page."""

    site: Site
    request: Request
    visitor: Visitor

    @property
    def sidecar(self) -> Sidecar:
        """What the process has."""
        return self.site.sidecar

    def path(self, struct: type[T]) -> T:
        """What is in the path; raises ProblemError."""
        return params.path(struct, self.request.path_params)

    def query(self, struct: type[T]) -> T:
        """What is in the query; raises ProblemError."""
        return params.query(struct, self.request.query_params.multi_items())

    async def form(self) -> dict[str, str]:
        """The fields of a form that is from a page of ours, those left empty left out; raises ProblemError."""
        bodies.check_media_type(self.request, (FORM,))
        body = await bodies.whole(self.request)
        try:
            pairs = parse_qsl(body.decode("utf-8", "replace"), max_num_fields=FIELDS_MAX)
        except ValueError:
            raise ProblemError(422, f"The form has too many fields; allowed: {FIELDS_MAX}") from None
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise ProblemError(422, "The form gives a field more than once")
        self.site.visitors.check_form(self.visitor, self.request, fields.pop("form_key", ""))
        return fields

    def render(self, template: str, status: int = 200, **words: Any) -> Response:
        """A page."""
        return render(self.site, self.request, self.visitor, template, status, **words)

    def answer(self, found: Struct) -> Response:
        """JSON for a script of ours."""
        return _respond(self.request, 200, msgspec.json.encode(found), JSON)


class Page(Struct, frozen=True, kw_only=True):
    """One method of one path."""

    path: str
    handler: Callable[[Visit], Awaitable[Response]]
    method: Literal["GET", "POST"] = "GET"
    role: Role | None = Role.read
    """None: also for those who have not signed in, who then are nobody."""
    is_for_scripts: bool = False
    """Whether errors are problem documents, and who is not signed in gets one."""


def route(path: str, pages: dict[str, Page], site_of: Callable[[], Site]) -> Route:
    """Starlette's route for the pages of one path, by method."""

    async def answer(request: Request) -> Response:
        page = pages["GET" if request.method == "HEAD" else request.method]
        request.scope["state"]["route"] = path
        try:
            return await _perform(page, request, site_of())
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)

    return Route(path, answer, methods=list(pages))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's hook for what its router raises: a page for people, a problem document for programs."""
    is_for_people = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(PROGRAMS)
    if not is_for_people or not isinstance(error, HTTPException):
        return await errors.on_http_exception(request, error)
    site: Site = request.app.state.site
    details = {404: "There is no such page. Find a device by its id, or go to the fleet."}
    problem = ProblemError(error.status_code, details.get(error.status_code, error.detail), error.headers)
    return _error_page(problem, request, site, site.visitors.of(request))


async def _perform(page: Page, request: Request, site: Site) -> Response:
    visitor = site.visitors.of(request)
    request.scope["state"]["token"] = visitor.name if visitor and visitor.is_signed_in else None
    try:
        if visitor is None and page.role is not None:
            return _to_sign_in(page, request)
        if visitor is None:
            visitor = site.visitors.stranger(request)
        if page.role is not None and not visitor.may(page.role):
            raise ProblemError(
                403, f"This takes a token of the role {page.role.name}, which {visitor.name} does not have"
            )
        response = await page.handler(Visit(site, request, visitor))
    except ProblemError as error:
        return _show(error, page, request, site, visitor)
    except ClientDisconnect:
        raise
    except Exception as error:  # a bug of ours: the trace for the log, a page for people
        bug = respond_to_bug(error, request_id_of(request))
        if page.is_for_scripts:
            return bug
        detail = f"Something went wrong here; the log has it under the request id {request_id_of(request)}"
        return _show(ProblemError(500, detail), page, request, site, visitor)
    remember(response, visitor, request)
    return response


def _to_sign_in(page: Page, request: Request) -> Response:
    if page.is_for_scripts or page.method == "POST":
        raise ProblemError(401, "You are not signed in, or not any more; load the page again")
    there = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"{SIGN_IN}?next={quote(there)}", 303)


def _show(error: ProblemError, page: Page, request: Request, site: Site, visitor: Visitor | None) -> Response:
    if page.is_for_scripts:
        return respond(error, request_id_of(request))
    return _error_page(error, request, site, visitor)


def _error_page(error: ProblemError, request: Request, site: Site, visitor: Visitor | None) -> Response:
    title = TITLES.get(error.status, ("", "Something went wrong"))[1]
    shown = render(site, request, visitor, "error.html", error.status, title=title, detail=error.detail)
    shown.headers.update(error.headers)
    return shown


def render(
    site: Site, request: Request, visitor: Visitor | None, template: str, status: int = 200, **words: Any
) -> Response:
    """A template as an answer."""
    shared = {"asset": site.assets.url, "visitor": visitor, "path": request.url.path, "version": __version__}
    return _respond(request, status, text(template, **shared, **words).encode(), "text/html")


def _respond(request: Request, status: int, body: bytes, media_type: str) -> Response:
    """Compressed where that is worth it and the browser can read it."""
    headers = dict(SECURITY)
    if len(body) >= COMPRESS_FROM_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        body, headers = gzip.compress(body, 6), {**headers, "Content-Encoding": "gzip"}
    return Response(body, status, headers, media_type)


def text(template: str, **words: Any) -> str:
    """A template as text."""
    return _templates.get_template(template).render(now=datetime.now(UTC), hour_long=HOUR, **words)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("api.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": units.number,
        "kwh": units.kwh,
        "percent": units.percent,
        "celsius": units.celsius,
        "volt": units.volt,
        "duration": units.duration,
        "moment": units.moment,
        "age": units.age,
        "segment": params.segment,
        "exact": units.exact,
        "count": units.count,
        "code": units.code,
        "printable": visible.printable,
        "printable_lines": visible.printable_lines,
        "hex_dump": visible.hex_dump,
    }
    return environment


_templates = _environment()
