"""As whom the doctor enters the broker."""

import secrets
import ssl

from mqtt5 import ConnAckPacket, ConnectPacket
from msgspec import Struct

from daemon.doctor.probe import Probe
from daemon.subscriber import SESSION_EXPIRY_S, Broker


class Account(Struct, frozen=True):
    """A name and password that are not the daemon's."""

    name: str
    password: str


class Access(Struct, frozen=True):
    """A way in whose sessions cannot be the daemon's: a new id each time, ended with the connection."""

    who: str
    host: str
    port: int
    tls: ssl.SSLContext | None
    username: str | None
    password: bytes | None

    async def enter(self, receive_maximum: int) -> Probe:
        """A session of its own; raises OSError, TimeoutError or ProbeError."""
        probe = await Probe.open(self.host, self.port, self.tls)
        try:
            await probe.connect(
                ConnectPacket(
                    f"fleetwatt-check-{secrets.token_hex(6)}",
                    username=self.username,
                    password=self.password,
                    clean_start=True,
                    receive_max=receive_maximum,
                )
            )
        except BaseException:
            await probe.__aexit__(None, None, None)
            raise
        return probe


async def enter_as_daemon(probe: Probe, broker: Broker, client_id: str) -> ConnAckPacket:
    """CONNECT as the daemon does, to the session that is there; raises ProbeError.

    An empty `client_id` asks the broker for one, and shows whether it gives the account's name instead.
    """
    return await probe.connect(
        ConnectPacket(
            client_id,
            username=broker.username,
            password=broker.password,
            clean_start=False,
            session_expiry_interval=SESSION_EXPIRY_S,
            receive_max=1,
        )
    )
