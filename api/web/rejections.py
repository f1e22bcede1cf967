"""What could not be stored, why, and another try."""

from typing import Literal

from msgspec import Struct
from starlette.responses import Response

from api.auth import Role
from api.rejections import REPLAY_MAX, Device, OneReason, Replay, ReplayCursor, try_again
from api.web import forms
from api.web.pages import Page, Visit
from daemon.readings import MEANINGS
from sql import rejections
from sql.rejections import Chosen, Group, Groups
from sql.replay import Report

GROUPS_MAX = 100
PAYLOAD_BYTES_SHOWN = 400


class Wanted(Struct, frozen=True, kw_only=True):
    """Which rejections are meant."""

    reason: OneReason | None = None
    device: Device | None = None


class Try(Wanted, frozen=True, kw_only=True):
    """Which to try again, and whether what passes is to be stored."""

    store: Literal["yes"] | None = None
    cursor: ReplayCursor | None = None


class Sums(Struct, frozen=True):
    """What came of all that was tried, in readings."""

    stored: int
    duplicate: int
    rejected: int

    @property
    def passed(self) -> int:
        """Those that are no rejections any more, or would not be."""
        return self.stored + self.duplicate


async def show(visit: Visit) -> Response:
    """The largest groups; what came is shown to admins, as by the API."""
    wanted = forms.asked(visit, Wanted)
    async with visit.sidecar.database.connection() as connection:
        groups = await rejections.group(connection, Chosen(reason=wanted.reason, device=wanted.device), GROUPS_MAX)
        ids = [one.example_id for one in groups.items] if visit.visitor.is_admin else []
        examples = await rejections.get_some(connection, ids, PAYLOAD_BYTES_SHOWN)
    return visit.render(
        "rejections.html",
        wanted=wanted,
        groups=groups,
        by_reason=_by_reason(groups),
        examples={one.id: one for one in examples},
        meanings=MEANINGS,
    )


async def try_them(visit: Visit) -> Response:
    """Try some again, or say what would become of them; at most so many at a time."""
    wanted = forms.read(Try, await visit.form())
    is_dry = wanted.store is None
    report = await try_again(
        visit.sidecar,
        Replay(dry_run=is_dry, reason=wanted.reason, device=wanted.device, limit=REPLAY_MAX, cursor=wanted.cursor),
    )
    return visit.render("replay.html", wanted=wanted, report=report, sums=_sums(report))


def _by_reason(groups: Groups) -> dict[str, list[Group]]:
    """The reason of the largest group first."""
    found: dict[str, list[Group]] = {}
    for one in groups.items:
        found.setdefault(one.reason, []).append(one)
    return found


def _sums(report: Report) -> Sums:
    return Sums(
        stored=sum(outcome.stored for outcome in report.outcomes),
        duplicate=sum(outcome.duplicate for outcome in report.outcomes),
        rejected=sum(sum(outcome.rejected.values()) for outcome in report.outcomes),
    )


PAGES = (
    Page(path="/rejections", handler=show),
    Page(path="/rejections/replay", method="POST", handler=try_them, role=Role.admin),
)
