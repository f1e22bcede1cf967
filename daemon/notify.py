"""What systemd is told: that the daemon has started, what it does, that it still does it, that it stops.

Rule: READY=1 means started and listening, not connected. The daemon waits for broker and database for as long as it
takes, so a start that waited for them would be ended by TimeoutStartSec= in just the outage that it is made for; what
it waits for is in STATUS=, and whether readings are stored says /readyz. WATCHDOG=1 goes out while the daemon is not
stalled (`daemon.progress`); one that is stalled, or whose event loop hangs, sends none and systemd restarts it.

The protocol is sd_notify(3): one datagram a message, to the address in NOTIFY_SOCKET. None is worth waiting for: where
the socket is gone or full, the message is dropped, and READY=1 and STATUS= are sent again with the next beat.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping

import structlog

log = structlog.get_logger("fleetwatt.notify")

INTERVAL_S = 5.0
"""Between two beats, without a watchdog."""
INTERVAL_MAX_S = 10.0
BEATS_PER_WATCHDOG = 3
"""One beat may be lost and another late before systemd loses patience."""
STATUS_CHARACTERS_MAX = 500


class Notifier:
    """Speaks to systemd; without a socket to speak to, it does nothing."""

    def __init__(self, address: str | None, watchdog_s: float | None) -> None:
        """`address` is a path, or a name in the abstract namespace that begins with @."""
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._watchdog_s = watchdog_s
        self.interval_s = min(watchdog_s / BEATS_PER_WATCHDOG, INTERVAL_MAX_S) if watchdog_s else INTERVAL_S
        self._is_ready = False
        self._is_ready_told = False
        self._status_told: str | None = None
        self._is_unheard = False
        self._stall: str | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Notifier":
        """What systemd set for this process."""
        address = environ.get("NOTIFY_SOCKET")
        if not address:
            return cls(None, None)
        if address[0] not in "/@":
            log.warning("NOTIFY_SOCKET is neither a path nor an abstract name, systemd hears nothing", value=address)
            return cls(None, None)
        return cls(address, _watchdog_s(environ))

    def ready(self) -> None:
        """The daemon has started and listens."""
        self._is_ready = True
        if not self._is_ready_told:
            self._is_ready_told = self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent where it is not the one that stands there."""
        line = " ".join(text.split())[:STATUS_CHARACTERS_MAX]
        if line != self._status_told and self._send(f"STATUS={line}"):
            self._status_told = line

    def stopping(self) -> None:
        """The daemon ends."""
        self._send("STOPPING=1")

    async def run(self, describe: Callable[[], str], is_stalled: Callable[[], Awaitable[str | None]]) -> None:
        """Beat until cancelled: the status, and a ping to the watchdog unless `is_stalled` says why not."""
        if self._address is None:
            return
        while True:
            self._note(await self._ask(is_stalled))
            if self._is_ready:
                self.ready()
            self.status(f"stalled: {self._stall}" if self._stall else describe())
            if self._watchdog_s and not self._stall:
                self._send("WATCHDOG=1")
            await asyncio.sleep(self.interval_s)

    async def _ask(self, is_stalled: Callable[[], Awaitable[str | None]]) -> str | None:
        """Why the daemon is stalled. A question that takes too long proves nothing, and must not delay the ping."""
        try:
            async with asyncio.timeout(self.interval_s):
                return await is_stalled()
        except TimeoutError:
            return None

    def _note(self, stall: str | None) -> None:
        if stall and not self._stall:
            log.error("stalled, the watchdog is not told otherwise", reason=stall)
        elif self._stall and not stall:
            log.info("not stalled any more")
        self._stall = stall

    def _send(self, message: str) -> bool:
        """Whether systemd's queue took it."""
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(message.encode(errors="replace"), self._address)
        except OSError as error:
            if not self._is_unheard:
                log.warning("systemd does not hear the daemon, which goes on", error=str(error))
            self._is_unheard = True
            return False
        self._is_unheard = False
        return True


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Seconds within which systemd wants a ping of this process; None where it wants none."""
    text = environ.get("WATCHDOG_USEC")
    if not text or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not (text.isascii() and text.isdigit()):
        log.warning("WATCHDOG_USEC is not a number of microseconds, there will be no pings", value=text)
        return None
    return int(text) / 1e6
