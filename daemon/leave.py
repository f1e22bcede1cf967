"""Leaving: what waits in the daemon's session at the broker is stored, nothing new comes in, and the session ends.

Rule: the session ends when the broker has said that it has nothing more to send, after all that came was stored and
acknowledged, and nothing is in the spool. Whatever interrupts this earlier leaves the session as it is, with all that
waits in it: the command can be given again, and so can the daemon's start.
"""

import asyncio
from typing import Protocol

import structlog

from daemon.accounts import Accounts

log = structlog.get_logger("fleetwatt.leave")

INTERVAL_S = 0.2


class Leaver(Protocol):
    """What is asked of the subscriber."""

    async def has_sent_all(self) -> bool:
        """Whether the broker said, now, that it has nothing more to send."""

    def forget(self) -> None:
        """Have the broker end the session when the connection ends."""


async def leave(subscriber: Leaver, accounts: Accounts, stop: asyncio.Event) -> None:
    """Wait until nothing is left anywhere, and stop."""
    while True:
        if await _nothing_left(subscriber, accounts):
            break
        await asyncio.sleep(INTERVAL_S)
    subscriber.forget()
    log.info("all is stored, the session at the broker ends", received=accounts.received)
    stop.set()


async def _nothing_left(subscriber: Leaver, accounts: Accounts) -> bool:
    received = accounts.received
    if accounts.in_flight or accounts.spooled or not await subscriber.has_sent_all():
        return False
    return accounts.received == received
