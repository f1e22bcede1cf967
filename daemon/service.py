"""The daemon: its parts, wired, started and stopped in order.

Stopping: the intake ends, the last batches are written and acknowledged, the broker is told good-bye (it keeps the
session), the rest is closed. All of it is bounded: what a database that does not answer kept from being written was
not acknowledged either, so the broker sends it again.
"""

import asyncio
import signal
import ssl
import time
from datetime import timedelta

import structlog
from mqtt5 import PublishPacket

from daemon.accounts import Accounts
from daemon.batch import Batches
from daemon.health import Readiness, build_app, listen, serving
from daemon.maintenance import Maintenance
from daemon.metrics import Metrics
from daemon.readings import LateReceipt, Receipt, ReceiptClock, Rules, decode
from daemon.settings import DaemonSettings
from daemon.subscriber import Session, Subscriber, broker_from_url
from daemon.writer import Writer
from sql.pool import open_pool
from sql.settings import SettingsError

log = structlog.get_logger("fleetwatt")

LAST_BATCHES_TIMEOUT_S = 3.0
POOL_CONNECTIONS_MAX = 4
"""One for each kind, one for maintenance, one for the health check."""
IN_FLIGHT_BATCHES_MAX = 4
"""Readings in memory, in full batches, from which on nothing more is read from the broker."""


class Intake:
    """From the subscriber to the batches: decodes, counts, and says when there is enough."""

    def __init__(self, rules: Rules, batches: Batches, accounts: Accounts, in_flight_max: int) -> None:
        self._rules = rules
        self._clock = ReceiptClock()
        self._batches = batches
        self._accounts = accounts
        self._in_flight_max = in_flight_max

    def take(self, session: Session, publishes: list[PublishPacket]) -> None:
        """Take one delivery. A batch takes it whole, so no two batches share a time of receipt."""
        receipt = Receipt(self._rules, self._clock)
        late = LateReceipt(self._rules, self._clock)
        batch = self._batches.open(session)
        before = batch.readings
        for packet in publishes:
            decoded = decode(packet.topic, packet.payload, late if packet.retain else receipt)
            batch.add(decoded, packet.packet_id)
        self._accounts.receive(batch.readings - before)
        self._batches.delivered()

    @property
    def is_full(self) -> bool:
        """Whether what is in flight is all that memory should hold."""
        return self._accounts.in_flight >= self._in_flight_max


async def run(settings: DaemonSettings) -> None:
    """Run until SIGTERM or SIGINT; raises SettingsError where a setting turns out to be wrong."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)


async def serve(settings: DaemonSettings, stop: asyncio.Event) -> None:
    """Run until `stop` is set."""
    tls = _tls_context(settings)
    listener = listen(settings.metrics_host, settings.metrics_port)
    accounts = Accounts()
    batches = Batches(settings.batch_rows_max, settings.flush_interval_s, time.monotonic)
    metrics = Metrics(accounts, batches.oldest_age_s)
    intake = Intake(_rules(settings), batches, accounts, IN_FLIGHT_BATCHES_MAX * settings.batch_rows_max)
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

    def settled() -> None:
        if not intake.is_full:
            subscriber.resume()

    subscriber = Subscriber(broker, take, metrics)
    async with open_pool(settings.database_url, settings.mqtt_client_id, POOL_CONNECTIONS_MAX) as pool:
        writer = Writer(pool, batches, accounts, metrics, settled)
        maintenance = Maintenance(pool, settings.retention_days, metrics)
        readiness = Readiness(subscriber, batches, writer, maintenance, pool)
        async with serving(build_app(readiness, metrics.registry), listener):
            log.info(
                "started", broker=broker.address, metrics=f"http://{settings.metrics_host}:{settings.metrics_port}"
            )
            await _until_stopped(stop, subscriber, batches, writer, maintenance)
    log.info("stopped", received=accounts.received, not_acknowledged=accounts.in_flight)


async def _until_stopped(
    stop: asyncio.Event, subscriber: Subscriber, batches: Batches, writer: Writer, maintenance: Maintenance
) -> None:
    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(writer.run(), name="writer")
        others = [
            tasks.create_task(subscriber.run(), name="subscriber"),
            tasks.create_task(maintenance.run(), name="maintenance"),
        ]
        await stop.wait()
        log.info("stopping")
        subscriber.stop_intake()
        batches.close()
        await asyncio.wait([writing], timeout=LAST_BATCHES_TIMEOUT_S)
        await subscriber.disconnect()
        for task in (writing, *others):
            task.cancel()


def _rules(settings: DaemonSettings) -> Rules:
    return Rules(
        clock_ahead_max=timedelta(seconds=settings.clock_ahead_max_s),
        retention=timedelta(days=settings.retention_days) if settings.retention_days else None,
    )


def _tls_context(settings: DaemonSettings) -> ssl.SSLContext | None:
    if not settings.uses_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.mqtt_ca_file)
    except OSError as error:
        raise SettingsError(
            f"MQTT_CA_FILE is {settings.mqtt_ca_file!r}, which cannot be used ({error}); allowed: a PEM file of CAs"
        ) from error
    if settings.mqtt_cert_file and settings.mqtt_key_file:
        try:
            context.load_cert_chain(settings.mqtt_cert_file, settings.mqtt_key_file)
        except OSError as error:
            raise SettingsError(
                f"MQTT_CERT_FILE and MQTT_KEY_FILE are {settings.mqtt_cert_file!r} and {settings.mqtt_key_file!r}, "
                f"which cannot be used ({error}); allowed: a PEM certificate and its key without a passphrase"
            ) from error
    return context
