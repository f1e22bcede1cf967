"""What could not be stored as a reading, kept with its bytes: stored once, grouped, listed, and purged by age.

Rule: a rejection is known by its time of receipt, topic, reason and payload. No two batches share a time of receipt, so
what has all four in common with a row of the table was sent to it before, by a try whose answer was lost. Equal ones
within one batch are numbered and all kept. The index over the hash of all that holds while two tries run at once, too.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec

from sql.pool import Connection, transaction
from sql.queries import query
from sql.turn import MAINTENANCE, take_turn

DETAIL_CHARACTERS_MAX = 300
GROUPED_MAX = 1_000_000
"""The most rejections that are looked at for a list of groups: the newest."""
PURGE_LOCK_TIMEOUT = "1s"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Rejection(msgspec.Struct, frozen=True):
    """One message, or one element of an array, with the reason why it is not in the history."""

    received_at: datetime
    topic: str
    reason: str
    detail: str
    payload: bytes


class Kept(msgspec.Struct, frozen=True):
    """A rejection in the table."""

    id: int
    rejection: Rejection

    @property
    def position(self) -> "Position":
        """Its place in the order of receipt."""
        return Position(self.rejection.received_at, self.id)


class Position(msgspec.Struct, frozen=True):
    """A place in the order of receipt."""

    received_at: datetime
    id: int

    def __str__(self) -> str:
        """For whoever wants to go on from here later."""
        return f"{(self.received_at - _EPOCH) // timedelta(microseconds=1)}~{self.id}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """What `str` has made."""
        microseconds, _, number = text.partition("~")
        return cls(_EPOCH + timedelta(microseconds=int(microseconds)), int(number))


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """Which rejections are meant: those for which everything holds that is not None. `until` is excluded."""

    reason: str | None = None
    device: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    ids: list[int] | None = None


class Group(msgspec.Struct, frozen=True, rename="camel"):
    """The rejections of one reason and one device."""

    reason: str
    device: str
    rejections: int
    first_received_at: datetime
    last_received_at: datetime
    example_id: int
    """The newest of them."""
    example_detail: str


class Groups(msgspec.Struct, frozen=True, rename="camel"):
    """The largest groups, and how much there is of all."""

    items: list[Group]
    groups: int
    rejections: int
    is_complete: bool
    """False where there are so many rejections that only the newest were counted."""


class Shown(msgspec.Struct, frozen=True, rename="camel"):
    """One rejection with what is known of it."""

    id: int
    received_at: datetime
    topic: str
    device: str
    reason: str
    detail: str
    payload_bytes: int
    """Of the whole payload."""
    payload: str | None
    """The payload, or as much of it as was asked for, where it is text in UTF-8."""
    payload_base64: bytes | None
    """The same where it is not."""

    @property
    def content(self) -> bytes:
        """The payload, or as much of it as was asked for."""
        return self.payload.encode() if self.payload is not None else self.payload_base64 or b""


async def insert(connection: Connection, rejections: Sequence[Rejection]) -> None:
    """Keep the rejections of a batch, all of them in this one call; they are committed when this returns.

    What an earlier call for the same batch has kept is not kept again.
    """
    topics = [_storable(rejection.topic) for rejection in rejections]
    await connection.execute(
        query("insert_rejections"),
        [rejection.received_at for rejection in rejections],
        topics,
        [rejection.reason for rejection in rejections],
        [_storable(rejection.detail)[:DETAIL_CHARACTERS_MAX] for rejection in rejections],
        [rejection.payload for rejection in rejections],
        _fingerprints(rejections),
    )


async def count_by_reason(connection: Connection, since: datetime) -> dict[str, int]:
    """By reason, the most frequent first."""
    return dict(await connection.fetch(query("count_by_reason"), since))


async def group(connection: Connection, chosen: Chosen, limit: int) -> Groups:
    """The largest groups of what is chosen (`ids` does not count here)."""
    rows = await connection.fetch(
        query("group_rejections"), chosen.reason, chosen.device, chosen.since, chosen.until, GROUPED_MAX, limit
    )
    found, groups = (rows[0]["found"], rows[0]["groups"]) if rows else (0, 0)
    return Groups([_group(row) for row in rows], groups, found, found < GROUPED_MAX)


async def fetch(
    connection: Connection,
    chosen: Chosen,
    after: Position | None,
    limit: int,
    bytes_max: int,
    last_id: int | None = None,
) -> list[Kept]:
    """Rejections in the order of their receipt, those behind `after`; at most about `bytes_max` of payload.

    With `last_id`, those that were kept later than that one are left out.
    """
    received_at, after_id = (after.received_at, after.id) if after else (None, None)
    rows = await connection.fetch(
        query("list_rejections"),
        chosen.reason,
        chosen.device,
        chosen.since,
        chosen.until,
        chosen.ids,
        received_at,
        after_id,
        limit,
        bytes_max,
        last_id,
    )
    return [Kept(number, Rejection(*values)) for number, *values in rows]


async def find_last_id(connection: Connection) -> int:
    """The id of the rejection that was kept last, or 0."""
    last_id: int = await connection.fetchval(query("find_newest_rejection"))
    return last_id


async def get(connection: Connection, rejection_id: int, bytes_max: int) -> Shown | None:
    """One rejection with the first bytes of its payload, or None where there is none with this id."""
    return next(iter(await get_some(connection, [rejection_id], bytes_max)), None)


async def get_some(connection: Connection, ids: Sequence[int], bytes_max: int) -> list[Shown]:
    """Those of these rejections that are there, in the order of their ids."""
    return [_shown(row, bytes_max) for row in await connection.fetch(query("get_rejections"), ids, bytes_max)]


async def replace(connection: Connection, ids: Sequence[int], rejections: Sequence[Rejection]) -> None:
    """Delete rejections, and keep others in their place."""
    async with transaction(connection):
        if rejections:
            await insert(connection, rejections)
        await connection.execute(query("delete_rejections"), ids)


async def purge(connection: Connection, before: datetime, rows_max: int) -> int:
    """Delete the oldest rejections received before a time, in one transaction; returns how many were deleted.

    None are while somebody else does maintenance, who then deletes them.
    """
    async with transaction(connection):
        await connection.execute(f"SET LOCAL lock_timeout = '{PURGE_LOCK_TIMEOUT}'")
        if not await take_turn(connection, MAINTENANCE):
            return 0
        purged: int = await connection.fetchval(query("purge_rejections"), before, rows_max)
    return purged


def _group(row: asyncpg.Record) -> Group:
    return Group(**{name: row[name] for name in Group.__struct_fields__})


def _shown(row: asyncpg.Record, bytes_max: int) -> Shown:
    text = _text_of(row["payload"], is_whole=row["payload_bytes"] <= bytes_max)
    return Shown(**{**row, "payload": text, "payload_base64": row["payload"] if text is None else None})


def _text_of(payload: bytes, *, is_whole: bool) -> str | None:
    """The payload as text, or None where it is none. The character that is cut in two at the end may be left out."""
    for end in range(len(payload), len(payload) - (1 if is_whole else 4), -1):
        with contextlib.suppress(UnicodeDecodeError):
            return payload[: max(end, 0)].decode("utf-8")
    return None


def _fingerprints(rejections: Sequence[Rejection]) -> list[bytes]:
    """What tells each from all others that were received at its time; equal ones are numbered."""
    copies: Counter[tuple[datetime, bytes]] = Counter()
    found = []
    for rejection in rejections:
        content = _hash(_storable(rejection.topic).encode(), rejection.reason.encode(), rejection.payload)
        copies[rejection.received_at, content] += 1
        found.append(_hash(content, b"%d" % copies[rejection.received_at, content]))
    return found


def _hash(*parts: bytes) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.digest()


def _storable(text: str) -> str:
    """PostgreSQL's text holds neither NUL nor half a surrogate pair; both may be quoted from a bad message."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")
