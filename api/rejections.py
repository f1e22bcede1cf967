"""What could not be stored as a reading: listed, shown, and tried again."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from api.auth import Role
from api.contract import JSON, Answer, Call, Operation, Sidecar, answer
from api.errors import ProblemError
from api.params import LIMIT_DEFAULT, Beginning, DeviceId, Instant, Limit, NoQuery
from daemon.readings import PAYLOAD_BYTES_MAX, REASONS, Reason, Rules, decode_again
from sql import rejections
from sql.rejections import Chosen, Group, Groups, Position, Shown
from sql.replay import Outcome, Report, replay

REPLAY_MAX = 10_000
"""Rejections that one request replays at most."""
REPLAY_DEFAULT = 1000
ID_MAX = 10**18 - 1
IDS_MAX = 1000

RejectionId = Annotated[int, Meta(ge=1, le=ID_MAX, description=f"a whole number from 1 to {ID_MAX}", examples=[4711])]
OneReason = Annotated[Reason, Meta(description=" or ".join(REASONS), examples=["clock_ahead"])]
Device = Annotated[
    DeviceId, Meta(description="1 to 64 of A-Z a-z 0-9 . _ : - (- alone: what came on no device's topic)")
]
ReplayCursor = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{1,17}~[0-9]{1,18}\Z",
        description="`next` of the report before, unchanged",
        examples=["1773500400000000~4711"],
    ),
]
Ids = Annotated[
    list[RejectionId],
    Meta(
        min_length=1,
        max_length=IDS_MAX,
        description=f"an array of 1 to {IDS_MAX} ids, each a whole number from 1 to {ID_MAX}",
    ),
]
DryRun = Annotated[bool, Meta(description="true or false")]
ReplayLimit = Annotated[
    int, Meta(ge=1, le=REPLAY_MAX, description=f"a whole number from 1 to {REPLAY_MAX}", examples=[REPLAY_DEFAULT])
]


class RejectionPath(Struct, frozen=True):
    """A rejection in the path."""

    id: RejectionId


class RejectionFilter(Struct, frozen=True, kw_only=True):
    """Which rejections to list: `since` <= time of receipt < `until`."""

    reason: OneReason | None = None
    device: Device | None = None
    since: Beginning | None = None
    until: Instant | None = None
    limit: Limit = LIMIT_DEFAULT


class Replay(Struct, frozen=True, kw_only=True, rename="camel"):
    """Which rejections to try again: those for which everything holds that is given."""

    dry_run: DryRun = True
    reason: OneReason | None = None
    device: Device | None = None
    since: Beginning | None = None
    until: Instant | None = None
    ids: Ids | None = None
    limit: ReplayLimit = REPLAY_DEFAULT
    cursor: ReplayCursor | None = None


async def list_rejections(call: Call[NoQuery, RejectionFilter, None]) -> Response:
    """The largest groups."""
    asked = call.query
    chosen = Chosen(reason=asked.reason, device=asked.device, since=asked.since, until=asked.until)
    async with call.sidecar.database.connection() as connection:
        return answer(await rejections.group(connection, chosen, asked.limit))


async def get_rejection(call: Call[RejectionPath, NoQuery, None]) -> Response:
    """One rejection."""
    async with call.sidecar.database.connection() as connection:
        found = await rejections.get(connection, call.path.id, PAYLOAD_BYTES_MAX)
    if found is None:
        raise ProblemError(404, f"There is no rejection {call.path.id}; it may have been replayed or purged")
    return answer(found)


async def replay_rejections(call: Call[NoQuery, NoQuery, Replay]) -> Response:
    """Decode them again and store what passes now."""
    return answer(await try_again(call.sidecar, call.body))


async def try_again(sidecar: Sidecar, asked: Replay) -> Report:
    """Replay them, or say what would become of them."""
    settings, now = sidecar.settings, datetime.now(UTC)
    rules = Rules(clock_ahead_max=settings.clock_ahead_max, retention=settings.retention)
    async with sidecar.replaying:
        report = await replay(
            sidecar.database.connection,
            Chosen(reason=asked.reason, device=asked.device, since=asked.since, until=asked.until, ids=asked.ids),
            partial(decode_again, rules=rules, now=now),
            sidecar.days,
            dry_run=asked.dry_run,
            limit=asked.limit,
            after=Position.parse(asked.cursor) if asked.cursor else None,
        )
    if not asked.dry_run:
        sidecar.cache.clear()
    return report


_AT = datetime(2026, 3, 14, 15, tzinfo=UTC)
_DETAIL = "`timestamp` is 3602 s ahead; at most 300 s are allowed"
_PAYLOAD = '{"kwhConsumedAc": 0.183, "voltage": 230.4, "timestamp": "2026-03-14T16:00:02Z"}'
_GROUP = Group("clock_ahead", "meter-0001", 60, datetime(2026, 3, 14, 14, 1, tzinfo=UTC), _AT, 4711, _DETAIL)
_SHOWN = Shown(
    id=4711,
    received_at=_AT,
    topic="meters/meter-0001/reading",
    device="meter-0001",
    reason="clock_ahead",
    detail=_DETAIL,
    payload_bytes=len(_PAYLOAD),
    payload=_PAYLOAD,
    payload_base64=None,
)
_REPORT = Report(
    dry_run=True,
    rejections=60,
    outcomes=[Outcome("clock_ahead", rejections=60, stored=58, duplicate=1, rejected={"conflict": 1})],
)

OPERATIONS = (
    # Before the path with an id in it, which would take the name for one.
    Operation(
        id="replayRejections",
        method="POST",
        path="/rejections/replay",
        tag="Rejections",
        summary="Decode them again and store what passes now",
        description=(
            "The oldest first, at most `limit` a request; send `next` as `cursor` to go on, until it is null. A dry "
            "run, unless `dryRun` is false. What is stored, or was there already, is no rejection any more; the others "
            "stay. May be sent again as often as one likes."
        ),
        handler=replay_rejections,
        role=Role.admin,
        body=Replay,
        body_example=Replay(reason="clock_ahead"),
        answers={200: Answer("What was done, or would be", Report, {JSON: _REPORT})},
    ),
    Operation(
        id="listRejections",
        method="GET",
        path="/rejections",
        tag="Rejections",
        summary="What could not be stored, by reason and device",
        description=(
            "The largest groups, each with its newest rejection as an example. `since` and `until` are times of "
            f"receipt. At most the newest {rejections.GROUPED_MAX} rejections are counted; `isComplete` says whether "
            "that was all."
        ),
        handler=list_rejections,
        role=Role.admin,
        query=RejectionFilter,
        answers={200: Answer("The groups", Groups, {JSON: Groups([_GROUP], 1, 60, is_complete=True)})},
    ),
    Operation(
        id="getRejection",
        method="GET",
        path="/rejections/{id}",
        tag="Rejections",
        summary="One of them, with what came",
        description=(
            f"`payload` is text, or `payloadBase64` where it is not UTF-8: the first {PAYLOAD_BYTES_MAX} of "
            "`payloadBytes` bytes. What is in it was written by whoever sent it."
        ),
        handler=get_rejection,
        role=Role.admin,
        path_type=RejectionPath,
        answers={200: Answer("The rejection", Shown, {JSON: _SHOWN})},
        problems=(404,),
    ),
)
