"""`/livez`, `/readyz` and `/metrics` for machines, `/status` for people too.

Ready means that commits follow arrivals: the subscription stands, what arrived is not waiting, the schema is right,
and, where nothing arrives, the database answers. An open socket proves none of this.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime

import msgspec
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from daemon.batch import Batches
from daemon.maintenance import Maintenance
from daemon.outage import Outage
from daemon.status import StatusBoard, as_text
from daemon.subscriber import Subscriber
from sql.pool import Pool, lease
from sql.settings import SettingsError

WAITING_MAX_S = 10.0
"""Readings that wait for longer make the daemon unready: commits do not follow arrivals."""
COMMIT_FRESH_S = 5.0
"""After a commit this recent the database need not be asked."""


class Readiness:
    """Finds what keeps the daemon from doing its work."""

    def __init__(
        self, subscriber: Subscriber, batches: Batches, outage: Outage, maintenance: Maintenance, pool: Pool
    ) -> None:
        self._subscriber = subscriber
        self._batches = batches
        self._outage = outage
        self._maintenance = maintenance
        self._pool = pool

    async def faults(self) -> list[str]:
        """What is wrong, in sentences; empty where the daemon is ready."""
        faults = []
        if not self._subscriber.subscribed:
            faults.append("not subscribed at the broker")
        if (age_s := self._batches.oldest_age_s()) > WAITING_MAX_S:
            faults.append(f"readings have been waiting for {age_s:.0f} s to be stored")
        if self._outage.is_lasting:
            faults.append(f"readings go to the spool, since the database does not take them: {self._outage.error}")
        if self._maintenance.schema_fault:
            faults.append(self._maintenance.schema_fault)
        if time.monotonic() - self._outage.last_commit_at_s > COMMIT_FRESH_S and (fault := await self._ask_database()):
            faults.append(fault)
        return faults

    async def _ask_database(self) -> str | None:
        try:
            async with asyncio.timeout(2), lease(self._pool) as connection:
                await connection.fetchval("SELECT 1")
        except Exception as error:  # whatever a server or a driver in disorder may say
            return f"the database does not answer: {error or type(error).__name__}"
        return None


def build_app(readiness: Readiness, registry: CollectorRegistry, board: StatusBoard) -> Starlette:
    """The routes."""

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        faults = await readiness.faults()
        return JSONResponse({"ready": not faults, "faults": faults}, status_code=503 if faults else 200)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def status(request: Request) -> Response:
        found = await board.read()
        if request.headers.get("accept", "").startswith("text/"):  # a browser, or a person who asked for text
            return PlainTextResponse(as_text(found, datetime.now(UTC)))
        return Response(msgspec.json.encode(found), media_type="application/json")

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/status", status),
        ]
    )


def listen(host: str, port: int) -> socket.socket:
    """The socket to serve on; raises SettingsError where it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:  # the latter for a name that no look-up can be made of
        raise SettingsError(
            f"METRICS_HOST and METRICS_PORT are {host!r} and {port}, where the daemon cannot listen ({error}); "
            "allowed: an address of this machine and a free port"
        ) from error


@asynccontextmanager
async def serving(app: Starlette, listener: socket.socket) -> AsyncIterator[None]:
    """Serve for the time of the block."""
    server = _Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    )
    task = asyncio.create_task(server.serve(sockets=[listener]), name="health")
    try:
        yield
    finally:
        server.should_exit = True
        await task


class _Server(uvicorn.Server):
    """uvicorn, leaving the signals to the daemon."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
