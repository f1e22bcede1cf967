"""The daemon: its parts, wired, started and stopped in order.

Stopping: the intake ends, the last batches are written and acknowledged, the broker is told good-bye (it keeps the
session), the rest is closed. All of it is bounded: what a database that does not answer kept from being written was
not acknowledged either, so the broker sends it again.
"""

import asyncio
import gc
import os
import signal
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from mqtt5 import PublishPacket

from daemon.accounts import Accounts
from daemon.batch import BYTES_MAX, Batch, Batches
from daemon.drain import Drain
from daemon.health import Readiness, build_app, listen, serving
from daemon.leave import leave
from daemon.maintenance import Maintenance, Retention
from daemon.metrics import Metrics
from daemon.notify import Notifier
from daemon.outage import Outage
from daemon.progress import Progress
from daemon.readings import LateReceipt, Receipt, ReceiptClock, Rules, decode
from daemon.recent import Recent
from daemon.rollups import Rollups
from daemon.settings import DaemonSettings
from daemon.settle import Settler
from daemon.spool import Spool
from daemon.status import LastProblem, StatusBoard
from daemon.subscriber import Session, Subscriber, broker_from_url
from daemon.tls import tls_context
from daemon.writer import Writer
from sql.flood import Flood
from sql.outside import is_free
from sql.pool import open_pool
from sql.rollups import KINDS

log = structlog.get_logger("fleetwatt")

LAST_BATCHES_TIMEOUT_S = 3.0
POOL_CONNECTIONS_MAX = 8
"""One for each kind, for the writer, the drain and the rollups; one for maintenance, one for the health check."""
IN_FLIGHT_BATCHES_MAX = 4
"""Readings in memory, in full batches, from which on nothing more is read from the broker."""
TICK_S = 1.0
COLLECTED_FROM = 50_000
"""New objects from which on the cyclic collector looks at them: Python's 700 have it go over the rows of a batch again
and again, which are in no cycle. What is in one, such as the traceback of an error, waits a little longer."""


class Intake:
    """From the subscriber to the batches: decodes, counts, and says when there is enough."""

    def __init__(self, rules: Rules, batches: Batches, accounts: Accounts, flood: Flood, in_flight_max: int) -> None:
        self._rules = rules
        self._clock = ReceiptClock()
        self._batches = batches
        self._accounts = accounts
        self._flood = flood
        self._in_flight_max = in_flight_max

    def take(self, session: Session, publishes: list[PublishPacket]) -> None:
        """Take one delivery. A batch takes it whole, so no two batches share a time of receipt."""
        receipt = Receipt(self._rules, self._clock)
        late = LateReceipt(self._rules, self._clock)
        batch = self._batches.open(session)
        before = batch.readings
        for packet in publishes:
            decoded = decode(packet.topic, packet.payload, late if packet.retain else receipt)
            batch.add(decoded, len(packet.topic) + len(packet.payload), packet.packet_id)
            if decoded.rejections:
                batch.contents.reject(decoded.rejections, self._flood)
        self._accounts.receive(batch.readings - before)
        self._batches.delivered()

    @property
    def is_full(self) -> bool:
        """Whether what is in flight is all that memory should hold."""
        return (
            self._accounts.in_flight >= self._in_flight_max or self._batches.bytes >= IN_FLIGHT_BATCHES_MAX * BYTES_MAX
        )


async def run(settings: DaemonSettings, last_problem: LastProblem, *, leaving: bool = False) -> None:
    """Run until SIGTERM or SIGINT, or when `leaving`, until all is stored that waits at the broker.

    Raises SettingsError where a setting turns out to be wrong.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, last_problem, stop, leaving=leaving)


async def serve(
    settings: DaemonSettings, last_problem: LastProblem, stop: asyncio.Event, *, leaving: bool = False
) -> None:
    """Run until `stop` is set."""
    tls = tls_context(settings)
    notifier = Notifier.from_environment(os.environ)
    accounts = Accounts()
    recent = Recent(accounts, time.monotonic())
    batches = Batches(settings.batch_rows_max, settings.flush_interval_s, time.monotonic)
    metrics = Metrics(accounts, batches.oldest_age_s)
    flood = Flood(settings.rejections_per_s_max, metrics.rejections_not_kept)
    intake = Intake(_rules(settings), batches, accounts, flood, IN_FLIGHT_BATCHES_MAX * settings.batch_rows_max)
    outage = Outage()
    broker = broker_from_url(
        settings.mqtt_url,
        tls=tls,
        client_id=settings.mqtt_client_id,
        share_group=settings.mqtt_share_group,
        receive_maximum=settings.mqtt_receive_maximum,
    )

    def take(session: Session, publishes: list[PublishPacket]) -> None:
        intake.take(session, publishes)
        if intake.is_full:
            subscriber.pause()

    def committed(batch: Batch, started_at_s: float) -> None:
        now_s = time.monotonic()
        metrics.batch_settled(batch, started_at_s, now_s)
        recent.committed(batch, now_s, datetime.now(UTC))

    def settled() -> None:
        if not intake.is_full:
            subscriber.resume()

    subscriber = Subscriber(broker, take, metrics, leaving=leaving)
    metrics.watch_commits(lambda: outage.last_commit_at.timestamp() if outage.last_commit_at else 0.0)
    with listen(settings.metrics_host, settings.metrics_port) as listener, _spool(settings, accounts, metrics) as spool:
        async with open_pool(settings.database_url, settings.mqtt_client_id, POOL_CONNECTIONS_MAX) as pool:
            writer = Writer(
                batches,
                Settler(pool, outage, flood, metrics),
                outage,
                accounts,
                committed,
                settled,
                spool,
                settings.spool_after_s,
            )
            maintenance = Maintenance(pool, Retention.of(settings), metrics)
            readiness = Readiness(subscriber, batches, outage, maintenance, pool)
            board = StatusBoard(accounts, recent, batches, outage, subscriber, spool, last_problem, readiness.faults)
            progress = Progress(
                lambda: max(batches.oldest_age_s(), spool.oldest_age_s() if spool else 0.0),
                lambda: outage.last_sign_at_s,
                lambda: is_free(settings.database_url, settings.mqtt_client_id),
                time.monotonic,
            )
            others = {
                "subscriber": subscriber.run(),
                "maintenance": maintenance.run(),
                **{
                    f"rollups of {kind.name}s": Rollups(pool, kind, settings.power_max_kw, metrics).run()
                    for kind in KINDS
                },
                "systemd": notifier.run(board.line, progress.stall),
                "recent": _tick(recent),
            }
            if spool is not None:
                drain_settler = Settler(pool, outage, flood, metrics)
                drain = Drain(spool, drain_settler, outage, pool, accounts, settings.batch_rows_max)
                others["drain"] = drain.run()
            if leaving:
                others["leave"] = leave(subscriber, accounts, stop)
            async with serving(build_app(readiness, metrics.registry, board), listener):
                gc.freeze()  # what is there by now stays, and need not be looked at
                gc.set_threshold(COLLECTED_FROM)
                notifier.ready()
                log.info(
                    "started",
                    broker=broker.address,
                    status=f"http://{settings.metrics_host}:{settings.metrics_port}/status",
                    spool=settings.spool_dir or "off",
                )
                await _until_stopped(stop, notifier, subscriber, batches, writer, others)
    log.info("stopped", received=accounts.received, spooled=accounts.spooled, not_acknowledged=accounts.in_flight)


async def _until_stopped(
    stop: asyncio.Event,
    notifier: Notifier,
    subscriber: Subscriber,
    batches: Batches,
    writer: Writer,
    others: dict[str, Coroutine[Any, Any, None]],
) -> None:
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(writer.run(), name="writer")
        tasks = [group.create_task(other, name=name) for name, other in others.items()]
        await stop.wait()
        log.info("stopping")
        notifier.stopping()
        subscriber.stop_intake()
        batches.close()
        await asyncio.wait([writing], timeout=LAST_BATCHES_TIMEOUT_S)
        writing.cancel()
        await asyncio.wait([writing])  # what is on its way to the spool is still acknowledged
        await subscriber.disconnect()
        for task in tasks:
            task.cancel()


@contextmanager
def _spool(settings: DaemonSettings, accounts: Accounts, metrics: Metrics) -> Iterator[Spool | None]:
    """The spool for the time of the block; None where it is off."""
    if settings.spool_dir is None:
        yield None
        return
    spool = Spool(settings.spool_dir, settings.spool_bytes_max)
    accounts.recover(spool.readings)
    metrics.watch_spool(lambda: spool.bytes, spool.oldest_age_s)
    if spool.readings:
        log.info("readings of an earlier start are in the spool", readings=spool.readings, unreadable=spool.unreadable)
    try:
        yield spool
    finally:
        spool.close()


async def _tick(recent: Recent) -> None:
    while True:
        recent.tick(time.monotonic())
        await asyncio.sleep(TICK_S)


def _rules(settings: DaemonSettings) -> Rules:
    return Rules(
        clock_ahead_max=timedelta(seconds=settings.clock_ahead_max_s),
        retention=timedelta(days=settings.retention_days) if settings.retention_days else None,
    )
