"""The way of a message, from a publish to its commit, with its time.

What is sent is no reading: it lacks every field, so it becomes a rejection `missing_field`, on the same way and in the
same transaction as a reading would be stored. That row is found by its bytes and deleted.
"""

import asyncio
import secrets
import time
from collections.abc import Sequence

import asyncpg
import msgspec

from daemon.doctor.access import Access
from daemon.doctor.findings import Finding, failure, ok, skipped
from daemon.doctor.probe import ProbeError
from daemon.subscriber import FIRST_ERROR_CODE
from sql.doctor import find_newest_rejection, take_rejection

NAME = "passage"
PASSAGE_TIMEOUT_S = 10.0
_LOOK_AGAIN_S = 0.02
_NO_SUBSCRIBERS = 0x10


async def try_passage(accesses: Sequence[Access], connection: asyncpg.Connection, device: str | None) -> Finding:
    """Send one message as the first access that may, and wait for it in the database."""
    payload = msgspec.json.encode({"fleetwattCheck": secrets.token_hex(16)})
    before = await find_newest_rejection(connection)
    for access in accesses:
        topic = f"meters/{device or access.username or 'fleetwatt-check'}/reading"
        started_s = time.monotonic()
        try:
            async with await access.enter(1) as probe:
                (code,) = await probe.publish(topic, [payload])
        except (ProbeError, OSError, EOFError):
            continue
        if code == _NO_SUBSCRIBERS:
            remedy = "start the daemon; if it runs, look for another broker in MQTT_URL"
            return failure(NAME, f"published to {topic}, and the broker has nobody who subscribed to it", remedy)
        if code < FIRST_ERROR_CODE:
            return await _wait(connection, before, payload, topic, started_s)
    return skipped(NAME, "nobody at hand may publish: give --probe-account a file with ID:PASSWORD of a device")


async def _wait(connection: asyncpg.Connection, before: int, payload: bytes, topic: str, started_s: float) -> Finding:
    while (waited_s := time.monotonic() - started_s) < PASSAGE_TIMEOUT_S:
        if await take_rejection(connection, before, payload):
            return ok(
                NAME, f"from publish to commit in {waited_s * 1000:.0f} ms (a message that is no reading, removed)"
            )
        await asyncio.sleep(_LOOK_AGAIN_S)
    remedy = (
        "let the daemon's account read meters/# in the broker's acl (it is not told that it may not); "
        "then journalctl -u fleetwatt-daemon -n 20"
    )
    return failure(NAME, f"published to {topic} and not in the database after {PASSAGE_TIMEOUT_S:.0f} s", remedy)
