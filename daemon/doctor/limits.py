"""What the broker does with more than it can hand over at once, tried out in sessions of the doctor's own.

The messages go to a topic that nobody else uses, and back to the session that sends them: how many come at once without
an acknowledgement is the delivery window; how many come at all, when only one at a time may be under way, is the queue.
"""

import asyncio
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

from mqtt5 import QoS, TopicFilter
from msgspec import Struct

from daemon.doctor.access import Access
from daemon.doctor.findings import Finding, failure, ok, skipped, warning
from daemon.doctor.probe import ProbeError
from daemon.subscriber import FIRST_ERROR_CODE, TOPICS

TOPIC = "fleetwatt-check"
WINDOW_TRIED = 200
"""Far above the 20 that brokers are content with where nobody asks for more."""
QUEUE_TRIED = 2000
"""Twice Mosquitto's default, which is the trap."""
QUEUE_ENOUGH = 100_000
RETAINED_COUNTED_MAX = 10_000
SILENCE_S = 1.0
"""For how long nothing comes before nothing more is expected."""
CONFIGURATION = "/etc/mosquitto/mosquitto.conf"
_DEFAULT_PORT = 1883
_DEFAULT_QUEUE = 1000

_HOLD_MORE = "set max_queued_messages 5000000 in /etc/mosquitto/mosquitto.conf; systemctl restart mosquitto"
_NO_WAY = (
    "no account was at hand that may publish to and read the topic "
    f"{TOPIC}/#: the daemon's own was not used, or may not"
)


class Tried(Struct, frozen=True):
    """What one access has shown; None where it may not do what it takes."""

    who: str = ""
    window: int | None = None
    queue: int | None = None
    retained: int | None = None


async def try_out(accesses: Sequence[Access], receive_maximum: int) -> Tried:
    """Try each access until one shows something."""
    for access in accesses:
        try:
            queue = await measure_queue(access)
            if queue is not None:
                return Tried(
                    access.who, await measure_window(access, receive_maximum), queue, await count_retained(access)
                )
        except (ProbeError, OSError, EOFError):
            continue
    return Tried()


async def measure_window(access: Access, receive_maximum: int) -> int | None:
    """How many messages come without an acknowledgement, of those that are tried."""
    count = min(WINDOW_TRIED, receive_maximum)
    return await _send_to_self(access, receive_maximum, count, acknowledge=False)


async def measure_queue(access: Access) -> int | None:
    """How many messages come in the end when one at a time may be under way, of those that are tried."""
    return await _send_to_self(access, 1, QUEUE_TRIED, acknowledge=True)


async def _send_to_self(access: Access, receive_maximum: int, count: int, *, acknowledge: bool) -> int | None:
    topic = f"{TOPIC}/{secrets.token_hex(6)}"
    async with await access.enter(receive_maximum) as probe:
        (granted,) = await probe.subscribe([TopicFilter(topic, max_qos=QoS.AT_LEAST_ONCE)])
        (taken,) = await probe.publish(topic, [b"0"])
        if granted >= FIRST_ERROR_CODE or taken >= FIRST_ERROR_CODE:
            return None
        if not await probe.collect(1, SILENCE_S, acknowledge=False):
            return None  # it may publish and not read, which the broker tells nobody
        await probe.publish(topic, [b"%d" % number for number in range(1, count)])
        came = await probe.collect(count, SILENCE_S, acknowledge=acknowledge)
        await probe.leave(forget=False)  # it was agreed to end with the connection
        return came


async def count_retained(access: Access) -> int:
    """How many retained messages lie on the daemon's topics."""
    async with await access.enter(100) as probe:
        await probe.subscribe(
            [TopicFilter(topic, max_qos=QoS.AT_MOST_ONCE, retain_as_published=False) for topic in TOPICS]
        )
        seen = -1
        while seen < len(probe.messages) < RETAINED_COUNTED_MAX:
            seen = len(probe.messages)
            await probe.collect(seen + 1000, SILENCE_S / 4, acknowledge=False)
            await probe.ping()
            seen = len(probe.messages) if not any(message.retain for message in probe.messages[seen:]) else seen
        await probe.leave(forget=False)
        return sum(message.retain for message in probe.messages)


async def judge_guest(guest: Access, broker_username: str | None, address: str) -> tuple[Finding, bool]:
    """Whether anybody may enter, and whether this is of use here."""
    name = "broker.guests"
    try:
        async with await guest.enter(1):
            is_in = True
    except (ProbeError, OSError, EOFError):
        is_in = False
    if not is_in:
        return ok(name, "nobody is let in without an account"), False
    if address.startswith(("127.", "::1")) and broker_username is None:
        return ok(name, "anybody on this machine is let in, as the daemon is"), True
    remedy = (
        "set allow_anonymous false in /etc/mosquitto/mosquitto.conf and give each device an account: docs/broker.md"
    )
    return warning(name, "anybody is let in without an account, and may be able to publish as any device", remedy), True


def judge_window(tried: Tried, receive_maximum: int) -> Finding:
    """The delivery window."""
    name = "broker.window"
    wanted = min(WINDOW_TRIED, receive_maximum)
    if tried.window is None:
        return skipped(name, _NO_WAY)
    if tried.window < wanted:
        remedy = "raise the broker's own limit of messages in flight; each acknowledgement otherwise waits for a commit"
        return warning(name, f"only {tried.window} messages come without an acknowledgement", remedy)
    return ok(name, f"at least {tried.window} messages come at once ({receive_maximum} are asked for)")


def judge_queue(tried: Tried, configuration: Path, limit: int | None) -> Finding:
    """How much the broker keeps for an absent daemon: as measured, and beyond that as `limit` says, if it is known."""
    name = "broker.queue"
    if tried.queue is not None and tried.queue < QUEUE_TRIED:
        text = f"the broker keeps about {tried.queue - 1} messages for an absent daemon and drops the rest"
        return failure(name, text, _HOLD_MORE)
    if tried.queue is not None and (limit is None or 0 < limit < QUEUE_TRIED):
        # A file that says less than was just seen is not the one that the broker has read.
        return ok(name, f"{tried.queue} messages were kept, which is all that were tried")
    if limit is None:
        remedy = f"see that it is far above 1000: grep max_queued_messages {configuration}; or give --probe-account"
        return warning(name, f"unknown: {_NO_WAY}", remedy)
    if limit and limit < QUEUE_TRIED:
        return failure(name, f"{configuration} lets the broker keep {limit} messages and drop the rest", _HOLD_MORE)
    if limit and limit < QUEUE_ENOUGH:
        text = f"{configuration} lets the broker keep {limit} messages, {limit / 10000:.1f} min of 10,000 devices"
        return warning(name, text, _HOLD_MORE)
    return ok(name, f"{configuration} lets the broker keep {limit or 'any number of'} messages")


def judge_retained(tried: Tried) -> Finding:
    """Garbage that each new session is given."""
    name = "broker.retained"
    if tried.retained is None:
        return skipped(name, _NO_WAY)
    if tried.retained:
        remedy = (
            "let the devices publish without retain, and remove what lies there: "
            "mosquitto_sub -t 'meters/#' -t 'vehicles/#' --retained-only --remove-retained -W 5 (as one who may)"
        )
        return warning(name, f"{tried.retained} retained messages lie on meters/# and vehicles/#", remedy)
    return ok(name, f"none that {tried.who} can see on meters/# and vehicles/#")


def read_limit(configuration: Path, port: int) -> int | None:
    """`max_queued_messages` of the broker at `port` (0: no limit); None where the file is not there or another's."""
    try:
        lines = configuration.read_text(encoding="utf-8").splitlines()
        folders = [Path(line.split(maxsplit=1)[1]) for line in lines if line.startswith("include_dir ")]
        for path in sorted(path for folder in folders for path in folder.glob("*.conf")):
            lines += path.read_text(encoding="utf-8").splitlines()
        ports = [int(line.split()[1]) for line in lines if line.startswith(("listener ", "port "))]
        limits = [int(line.split()[1]) for line in lines if line.startswith("max_queued_messages ")]
    except (OSError, ValueError, IndexError):
        return None
    if port not in (ports or [_DEFAULT_PORT]):
        return None
    return limits[-1] if limits else _DEFAULT_QUEUE


async def is_local(address: str) -> bool:
    """Whether an address is one of this machine."""

    def bind() -> bool:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as tried:
            try:
                tried.bind((address, 0))
            except OSError:
                return False
        return True

    return await asyncio.to_thread(bind)
