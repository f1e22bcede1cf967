"""What could not be stored as a reading, kept with its bytes."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from sql.pool import Connection
from sql.queries import query

DETAIL_CHARACTERS_MAX = 300


class Rejection(msgspec.Struct, frozen=True):
    """One message, or one element of an array, with the reason why it is not in the history."""

    received_at: datetime
    topic: str
    reason: str
    detail: str
    payload: bytes


async def insert(connection: Connection, rejections: Sequence[Rejection]) -> None:
    """Keep rejections; they are committed when this returns."""
    await connection.execute(
        query("insert_rejections"),
        [rejection.received_at for rejection in rejections],
        [_storable(rejection.topic) for rejection in rejections],
        [rejection.reason for rejection in rejections],
        [_storable(rejection.detail)[:DETAIL_CHARACTERS_MAX] for rejection in rejections],
        [rejection.payload for rejection in rejections],
    )


def _storable(text: str) -> str:
    """PostgreSQL's text holds neither NUL nor half a surrogate pair; both may be quoted from a bad message."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")
