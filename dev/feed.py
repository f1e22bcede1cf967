"""Publishing as hardware does: QoS 1 through aiomqtt, reconnecting for as long as it takes."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from itertools import islice
from urllib.parse import urlsplit

import aiomqtt

WINDOW = 200
"""Messages on their way at once."""
RECONNECT_DELAY_S = 0.5

_quiet = logging.getLogger("fleetwatt.feed")
_quiet.setLevel(logging.ERROR)  # aiomqtt warns of more than ten messages at once, which are meant


class Feed:
    """A connection to the broker that comes back; a message counts once the broker acknowledged it."""

    def __init__(self, mqtt_url: str, client_id: str) -> None:
        parts = urlsplit(mqtt_url)
        self._host = parts.hostname or "localhost"
        self._port = parts.port or 1883
        self._username = parts.username
        self._password = parts.password
        self._client_id = client_id
        self._client: aiomqtt.Client | None = None

    async def send(self, messages: Iterable[tuple[str, bytes]], acknowledged: Callable[[int], None]) -> None:
        """Publish (topic, payload) pairs; `acknowledged` is told how many more the broker has taken.

        A window of messages that a lost connection interrupted is sent again: some may then arrive twice.
        """
        pending = iter(messages)
        while window := list(islice(pending, WINDOW)):
            while not await self._send_window(window):
                await self.close()
                await asyncio.sleep(RECONNECT_DELAY_S)
            acknowledged(len(window))

    async def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(aiomqtt.MqttError):  # it was lost already
                await client.__aexit__(None, None, None)

    async def _send_window(self, window: list[tuple[str, bytes]]) -> bool:
        try:
            client = await self._connected()
            results = await asyncio.gather(
                *(client.publish(topic, payload, qos=1) for topic, payload in window), return_exceptions=True
            )
        except aiomqtt.MqttError:
            return False
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, aiomqtt.MqttError):
                raise result
        return not any(results)

    async def _connected(self) -> aiomqtt.Client:
        if self._client is None:
            client = aiomqtt.Client(
                self._host,
                self._port,
                username=self._username,
                password=self._password,
                identifier=self._client_id,
                protocol=aiomqtt.ProtocolVersion.V5,
                logger=_quiet,
                max_inflight_messages=WINDOW,
                max_concurrent_outgoing_calls=WINDOW,
            )
            await client.__aenter__()
            self._client = client
        return self._client
