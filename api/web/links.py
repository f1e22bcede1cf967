"""Who charges where: the links, and the forms that make, end, correct and remove them."""

from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlencode

from msgspec import Struct, field
from starlette.responses import RedirectResponse, Response

from api import links
from api.auth import Role
from api.errors import ProblemError
from api.links import Correction, LinkCursor, LinkFilter, Pairing
from api.params import Beginning, DeviceId, Instant, MeterId
from api.web import forms
from api.web.forms import Form
from api.web.pages import Page, Visit
from api.web.units import exact
from sql import devices
from sql.links import Link
from sql.store import METER, VEHICLE

LINKS_A_PAGE = 50
SUGGESTED = 100
"""Ids of each kind that are offered while one is written."""
TIMES = ("validFrom", "validTo")
LABELS = {
    "vehicleId": "The vehicle's id",
    "meterId": "The meter's id",
    "validFrom": "The beginning",
    "validTo": "The end",
}
Done = Literal["paired", "moved", "ended", "corrected", "removed"]
DONE: dict[Done, str] = {
    "paired": "The two are paired.",
    "moved": "The two are paired. The open links that they had with others ended at that moment.",
    "ended": "The link has ended. If that was a mistake: correct it and leave its end empty.",
    "corrected": "The link is corrected. Energy of the past counts accordingly.",
    "removed": (
        "The link is removed, and energy of the past counts as if it had never been. Links that it ended when it was "
        "made stay ended: to open one again, correct it and leave its end empty."
    ),
}
GONE = (
    "Somebody else has ended, corrected or removed this link meanwhile, so nothing was changed. "
    "Here is what there is now."
)


class Chosen(Struct, frozen=True, kw_only=True, rename="camel"):
    """Which links are shown, and what was done before."""

    vehicle_id: DeviceId | None = None
    meter_id: MeterId | None = None
    show: Literal["open", "all"] = "open"
    cursor: LinkCursor | None = None
    done: Done | None = None

    @property
    def address(self) -> str:
        """That of the first page of these links."""
        chosen = {"show": self.show, "vehicleId": self.vehicle_id, "meterId": self.meter_id}
        return "/links?" + urlencode({name: value for name, value in chosen.items() if value})


class Named(Struct, frozen=True, rename="camel"):
    """One link."""

    vehicle_id: DeviceId
    since: Beginning = field(name="validFrom")


class Seen(Struct, frozen=True, rename="camel"):
    """A link as it was when its form was made: who corrects or removes it means that one."""

    vehicle_id: DeviceId
    was_meter_id: MeterId
    was_valid_from: Beginning
    was_valid_to: Instant | None = None

    @property
    def link(self) -> Link:
        """The link."""
        return Link(self.vehicle_id, self.was_meter_id, self.was_valid_from, self.was_valid_to)


SEEN = frozenset(("vehicleId", "wasMeterId", "wasValidFrom", "wasValidTo"))


async def show(visit: Visit) -> Response:
    """The links, and the form that makes one."""
    return await _show(visit, forms.asked(visit, Chosen))


async def pair(visit: Visit) -> Response:
    """Make a link."""
    fields = await visit.form()
    try:
        paired = await links.make(visit.sidecar, forms.read(Pairing, fields, TIMES))
    except ProblemError as error:
        return await _show(visit, Chosen(), error.status, form=_refused(error, fields, "vehicleId"))
    return _done(visit, "moved" if paired.ended else "paired", paired.link)


async def end(visit: Visit) -> Response:
    """End an open link now."""
    named = forms.read(Named, await visit.form())
    try:
        ended = await links.end(visit.sidecar, named.vehicle_id, named.since)
    except ProblemError as error:
        if not _is_gone(error):
            raise
        return await _show_gone(visit, error.status, named.vehicle_id)
    return _done(visit, "ended", ended)


async def show_correction(visit: Visit) -> Response:
    """The form that corrects a link, filled with what it is now."""
    return await _show_one(visit, "correct_link.html")


async def correct(visit: Visit) -> Response:
    """Correct a link."""
    fields = await visit.form()
    was = forms.read(Seen, {name: value for name, value in fields.items() if name in SEEN}).link
    wanted = {name: value for name, value in fields.items() if name not in SEEN} | {"corrects": exact(was.valid_from)}
    try:
        corrected = await links.mend(visit.sidecar, was.vehicle_id, forms.read(Correction, wanted, TIMES), was)
    except ProblemError as error:
        if _is_gone(error):
            return await _show_gone(visit, error.status, was.vehicle_id)
        return visit.render("correct_link.html", error.status, form=_refused(error, fields, "validFrom"), link=was)
    return _done(visit, "corrected", corrected)


async def show_removal(visit: Visit) -> Response:
    """What is removed with a link, and the form that does it."""
    return await _show_one(visit, "remove_link.html")


async def remove(visit: Visit) -> Response:
    """Remove a link."""
    was = forms.read(Seen, await visit.form()).link
    try:
        removed = await links.remove(visit.sidecar, was.vehicle_id, was.valid_from, was)
    except ProblemError as error:
        if not _is_gone(error):
            raise
        return await _show_gone(visit, error.status, was.vehicle_id)
    return _done(visit, "removed", removed)


async def _show_one(visit: Visit, template: str) -> Response:
    """A page about one link, as it is now."""
    named = forms.asked(visit, Named)
    found = await links.find(visit.sidecar, LinkFilter(vehicle_id=named.vehicle_id, at=named.since, limit=1))
    if not found.items or found.items[0].valid_from != named.since:
        return await _show_gone(visit, 404, named.vehicle_id)
    return visit.render(template, form=Form(_fields(found.items[0])), link=found.items[0])


async def _show(
    visit: Visit, chosen: Chosen, status: int = 200, *, form: Form | None = None, fault: str = ""
) -> Response:
    page = await links.find(
        visit.sidecar,
        LinkFilter(
            vehicle_id=chosen.vehicle_id,
            meter_id=chosen.meter_id,
            open="true" if chosen.show == "open" else None,
            cursor=chosen.cursor,
            limit=LINKS_A_PAGE,
        ),
    )
    return visit.render(
        "links.html",
        status,
        chosen=chosen,
        page=page,
        form=form or Form(),
        suggested=await _suggested(visit) if visit.visitor.can_write else {},
        done=DONE[chosen.done] if chosen.done else "",
        fault=fault,
    )


def _is_gone(error: ProblemError) -> bool:
    """Whether the link that was meant is not as it was, and not another link in the way."""
    return error.status in (404, 409, 410) and "link" not in error.members


async def _show_gone(visit: Visit, status: int, vehicle_id: str) -> Response:
    return await _show(visit, Chosen(vehicle_id=vehicle_id, show="all"), status, fault=GONE)


def _done(visit: Visit, what: Done, link: Link) -> Response:
    return RedirectResponse(f"{Chosen(vehicle_id=link.vehicle_id, show='all').address}&done={what}", 303)


def _refused(error: ProblemError, fields: Mapping[str, str], own: str) -> Form:
    """The form again; a link that is in the way is told beside the field `own` where it is one of the same vehicle."""
    other: Link | None = error.members.get("link")
    if other is None:
        return Form(fields, forms.faults(error, LABELS))
    name = own if other.vehicle_id == fields["vehicleId"].strip() else "meterId"
    return Form(fields, {name: error.detail}, other)


async def _suggested(visit: Visit) -> dict[str, list[str]]:
    """The first ids of each kind."""
    async with visit.sidecar.database.connection() as connection:
        return {
            kind.name: [one.id for one in await devices.list_status(connection, kind, after=None, limit=SUGGESTED)]
            for kind in (VEHICLE, METER)
        }


def _fields(link: Link) -> dict[str, str]:
    """The form that would change nothing."""
    return {
        "meterId": link.meter_id,
        "validFrom": exact(link.valid_from),
        "validTo": exact(link.valid_to),
    }


PAGES = (
    Page(path="/links", handler=show),
    Page(path="/links", method="POST", handler=pair, role=Role.write),
    Page(path="/links/end", method="POST", handler=end, role=Role.write),
    Page(path="/links/correct", handler=show_correction, role=Role.write),
    Page(path="/links/correct", method="POST", handler=correct, role=Role.write),
    Page(path="/links/remove", handler=show_removal, role=Role.write),
    Page(path="/links/remove", method="POST", handler=remove, role=Role.write),
)
