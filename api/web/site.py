"""Every page there is, and what they share while the process runs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.contract import Sidecar
from api.web import device, fleet, links, rejections, sign_in
from api.web.assets import Assets
from api.web.live import Live
from api.web.overview import Watch
from api.web.pages import Page, Site, route
from api.web.session import Visitors

PAGES: tuple[Page, ...] = (*fleet.PAGES, *device.PAGES, *links.PAGES, *rejections.PAGES, *sign_in.PAGES)


def routes(site_of: Callable[[], Site]) -> list[Route]:
    """Starlette's routes."""
    by_path: dict[str, dict[str, Page]] = {}
    for page in PAGES:
        by_path.setdefault(page.path, {})[page.method] = page

    async def asset(request: Request) -> Response:
        return site_of().assets.serve(request)

    return [Route("/static/{version}/{name}", asset), *(route(path, pages, site_of) for path, pages in by_path.items())]


@asynccontextmanager
async def open_site(sidecar: Sidecar) -> AsyncIterator[Site]:
    """What the pages share, with the task that looks at the database for all viewers."""
    watch = Watch(sidecar)
    live = Live(partial(fleet.render_parts, watch), sidecar.metrics)
    watching = asyncio.create_task(live.run(), name="live")
    try:
        yield Site(sidecar, Visitors(sidecar.gate), Assets(), watch, live)
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await watch.close()
