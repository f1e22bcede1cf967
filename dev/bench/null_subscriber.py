"""The daemon's own subscriber with nothing behind it: what comes is acknowledged at once, not decoded, not stored."""

import asyncio

from mqtt5 import PublishPacket

from daemon.accounts import Accounts
from daemon.metrics import Metrics
from daemon.settings import DaemonSettings
from daemon.subscriber import Session, Subscriber, broker_from_url
from dev.bench.client import ClientCounts, ClientOptions
from dev.bench.worker import Reports, run


async def acknowledge(options: ClientOptions, reports: Reports) -> None:
    """Acknowledge until the bench says it is enough."""
    counts = ClientCounts()

    def take(session: Session, publishes: list[PublishPacket]) -> None:
        session.acknowledge([packet.packet_id for packet in publishes if packet.packet_id is not None])
        counts.done += len(publishes)

    settings = DaemonSettings(database_url=options.database_url, mqtt_url=f"mqtt://127.0.0.1:{options.port}")
    broker = broker_from_url(
        settings.mqtt_url,
        tls=None,
        client_id="null",
        share_group=None,
        receive_maximum=settings.mqtt_receive_maximum,
    )
    subscriber = Subscriber(broker, take, Metrics(Accounts(), lambda: 0.0))

    def report() -> ClientCounts:
        counts.subscribed = subscriber.subscribed
        return counts

    running = asyncio.create_task(subscriber.run(), name="subscriber")
    await reports.attend(report)
    running.cancel()


if __name__ == "__main__":
    run(acknowledge, ClientOptions)
