"""The pages of one vehicle and of one meter, over a window that the viewer chooses.

What is read from them without a script is rendered here; the charts are drawn by static/device.js from the same window.
"""

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct
from msgspec.structs import replace
from starlette.responses import Response

from api import params
from api.errors import ProblemError, invalid
from api.live import SPAN_MAX, DeviceOnPath, unknown
from api.params import EARLIEST, LATEST, Window, window
from api.web.device_data import meter_data, vehicle_data
from api.web.pages import Page, Visit
from sql.analytics import Rules, performances
from sql.completeness import Completeness, completeness
from sql.devices import Device, EnergyMode, MeterStatus, VehicleStatus, find_mode, get_device, get_status
from sql.hours import DAY
from sql.links import Link, links_of
from sql.measure import Piece, measure
from sql.pool import Connection
from sql.store import METER, VEHICLE, Kind

Span: TypeAlias = Literal["24h", "7d", "30d"]

SPANS: dict[Span, timedelta] = {"24h": DAY, "7d": 7 * DAY, "30d": 30 * DAY}
SPAN_NAMES: dict[Span, str] = {"24h": "24 hours", "7d": "7 days", "30d": "30 days"}
SPAN_DEFAULT: Span = "24h"
OTHER = {VEHICLE: METER.name, METER: VEHICLE.name}
SECOND = timedelta(seconds=1)
PAIRINGS_MAX = 100
COMPLETENESS_SPAN_MAX = timedelta(days=31)
_FROM_FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,3})?)?", re.ASCII)
"""What a browser's field for date and time sends: without an offset, which the form says is UTC."""


class Chosen(Window, frozen=True, kw_only=True):
    """Which window: one of some lengths up to now, or from one time to another."""

    span: Annotated[Span, Meta(description="24h, 7d or 30d")] | None = None

    def default_start(self, end: datetime) -> datetime:
        """So long before its end as was chosen."""
        return end - SPANS[self.span or SPAN_DEFAULT]


class Shown(Struct, frozen=True):
    """The window that a page shows."""

    start: datetime
    end: datetime
    span: Span | None
    """None: the viewer said from when to when."""

    @property
    def query(self) -> str:
        """The same window, whenever it is asked for."""
        return f"from={_rfc3339(self.start)}&to={_rfc3339(self.end)}"

    @property
    def typed(self) -> dict[str, str]:
        """The window as it stands in the form's fields."""
        return {"from": f"{self.start:%Y-%m-%dT%H:%M:%S}", "to": f"{self.end:%Y-%m-%dT%H:%M:%S}"}


class Pairing(Struct, frozen=True):
    """A link, as long as it was valid within a window."""

    link: Link
    other: str
    """The device at the other end."""
    start: datetime
    end: datetime
    left: float
    """Where it begins and how long it is, in thousandths of the window."""
    width: float
    ac_kwh: float | None = None


class Known(Struct, frozen=True):
    """What is known of a device whatever the window."""

    kind: Kind
    id: str
    device: Device | None
    """None: it is linked, but sent nothing yet."""
    status: MeterStatus | VehicleStatus | None
    """Its newest reading."""
    newest_link: Link | None

    @property
    def energy_mode(self) -> EnergyMode:
        """How its kWh are read."""
        return self.device.energy_mode if self.device else "interval"

    @property
    def linked_with(self) -> str | None:
        """The device at the other end of its open link."""
        link = self.newest_link
        return _other_end(self.kind, link) if link and link.valid_to is None else None

    @property
    def last_window(self) -> str | None:
        """A query for the window that ends with its newest reading."""
        return f"span={SPAN_DEFAULT}&to={_rfc3339(self.status.ts + SECOND)}" if self.status else None


Words: TypeAlias = dict[str, Any]


async def show_vehicle(visit: Visit) -> Response:
    """The page of a vehicle."""
    return await _show(visit, VEHICLE, _words_of_vehicle)


async def show_meter(visit: Visit) -> Response:
    """The page of a meter."""
    return await _show(visit, METER, _words_of_meter)


async def send_vehicle_data(visit: Visit) -> Response:
    """What the charts of a vehicle are drawn from."""
    device_id, shown = visit.path(DeviceOnPath).id, _window(visit)
    async with visit.sidecar.database.connection() as connection:
        found = await vehicle_data(connection, device_id, shown.start, shown.end, _rules(visit))
    if found is None:
        raise unknown(VEHICLE, device_id)
    return visit.answer(found)


async def send_meter_data(visit: Visit) -> Response:
    """What the charts of a meter are drawn from."""
    device_id, shown = visit.path(DeviceOnPath).id, _window(visit)
    async with visit.sidecar.database.connection() as connection:
        energy_mode = await find_mode(connection, METER, device_id)
        if energy_mode is None:
            raise unknown(METER, device_id)
        found = await meter_data(connection, device_id, energy_mode, shown.start, shown.end, _rules(visit))
    return visit.answer(found)


async def _show(
    visit: Visit, kind: Kind, words_of: Callable[[Connection, Visit, Known, Shown], Awaitable[Words]]
) -> Response:
    try:
        device_id = visit.path(DeviceOnPath).id
    except ProblemError:
        name = visit.request.path_params["id"]
        return visit.render("unknown_device.html", 404, kind=kind.name, id=name, is_possible=False)
    async with visit.sidecar.database.connection() as connection:
        known = await _find(connection, kind, device_id)
        if known is None:
            return visit.render("unknown_device.html", 404, kind=kind.name, id=device_id, is_possible=True)
        words: Words = {"known": known, "kind": kind.name, "other": OTHER[kind], "spans": SPAN_NAMES}
        try:
            shown = _window(visit)
        except ProblemError as error:
            given = {name: text for name in ("from", "to") if (text := visit.request.query_params.get(name))}
            typed = {name: _typed(given.get(name, "")) for name in ("from", "to")}
            asked = " ".join(f"{name} {params.shown(text)}" for name, text in given.items())
            words |= {"shown": None, "typed": typed, "fault": error.detail, "asked": asked}
            return visit.render(f"{kind.name}.html", error.status, **words)
        words |= await words_of(connection, visit, known, shown)
    return visit.render(
        f"{kind.name}.html",
        **words,
        shown=shown,
        typed=shown.typed,
        fault=None,
        is_open=visit.sidecar.gate.is_open,
        pairings_max=PAIRINGS_MAX,
    )


async def _words_of_vehicle(connection: Connection, visit: Visit, known: Known, shown: Shown) -> Words:
    rules = _rules(visit)
    answers = await performances(connection, known.id, [(shown.start, shown.end)], rules)
    if answers is None:
        raise unknown(VEHICLE, known.id)
    (found,) = answers
    ac_kwh = {(share.meter_id, share.linked_from): share.ac_kwh for share in found.meters}
    pairings = [
        replace(one, ac_kwh=ac_kwh.get((one.other, one.start))) for one in await _pairings(connection, known, shown)
    ]
    samples = found.samples + found.meter_samples
    return {"performance": found, "pairings": pairings, "samples": samples, "rules": rules}


async def _words_of_meter(connection: Connection, visit: Visit, known: Known, shown: Shown) -> Words:
    rules, pairings = _rules(visit), await _pairings(connection, known, shown)
    whole = Piece(known.id, known.energy_mode, shown.start, shown.end)
    (total,) = await measure(connection, METER, [whole], rules.power_max_kw)
    # Not together with the whole: the pieces of one device must not overlap.
    pieces = [Piece(known.id, known.energy_mode, one.start, one.end) for one in pairings]
    parts = await measure(connection, METER, pieces, rules.power_max_kw)
    pairings = [replace(one, ac_kwh=part.kwh) for one, part in zip(pairings, parts, strict=True)]
    came: Completeness | None = None
    if shown.end - shown.start <= COMPLETENESS_SPAN_MAX:
        came = await completeness(connection, METER, known.id, shown.start, shown.end, datetime.now(UTC))
    return {
        "total": total,
        "pairings": pairings,
        "completeness": came,
        "completeness_days": COMPLETENESS_SPAN_MAX.days,
        "samples": total.samples,
    }


async def _find(connection: Connection, kind: Kind, device_id: str) -> Known | None:
    device = await get_device(connection, kind, device_id)
    status = await get_status(connection, kind, device_id)
    links = await links_of(connection, kind, device_id, EARLIEST, LATEST, 1)
    return Known(kind, device_id, device, status, links[0] if links else None) if device or links else None


async def _pairings(connection: Connection, known: Known, shown: Shown) -> list[Pairing]:
    """The newest ones in the window, in the order of time."""
    length = shown.end - shown.start
    pairings = []
    for link in await links_of(connection, known.kind, known.id, shown.start, shown.end, PAIRINGS_MAX):
        start, end = max(link.valid_from, shown.start), min(link.valid_to or shown.end, shown.end)
        pairings.append(
            Pairing(
                other=_other_end(known.kind, link),
                link=link,
                start=start,
                end=end,
                left=1000 * ((start - shown.start) / length),
                width=1000 * ((end - start) / length),
            )
        )
    return pairings[::-1]


def _other_end(kind: Kind, link: Link) -> str:
    return link.meter_id if kind is VEHICLE else link.vehicle_id


def _window(visit: Visit) -> Shown:
    """The window that is asked for; raises ProblemError."""
    given = [(name, _in_utc(text)) for name, text in visit.request.query_params.multi_items() if text]
    asked = params.query(Chosen, given)
    if asked.span and asked.start:
        raise invalid("query", "span", "`span` and `from` both say where the window begins; allowed: one of them")
    start, end = window(asked, datetime.now(UTC).replace(microsecond=0), SPAN_MAX)
    span = None if asked.start or asked.end else asked.span or SPAN_DEFAULT
    return Shown(start, end, span)


def _in_utc(text: str) -> str:
    """A time as a browser's field has it, as the time in UTC that the form says it is; anything else as it came."""
    if not _FROM_FORM.fullmatch(text):
        return text
    return f"{text}Z" if text.count(":") == 2 else f"{text}:00Z"


def _typed(text: str) -> str:
    """A time of the address as it stands in the form's fields, which show nothing else."""
    try:
        moment = datetime.fromisoformat(text)
        return f"{moment.astimezone(UTC) if moment.tzinfo else moment:%Y-%m-%dT%H:%M:%S}"
    except (ValueError, OverflowError):
        return ""


def _rules(visit: Visit) -> Rules:
    settings = visit.sidecar.settings
    return Rules(low_efficiency=settings.low_efficiency, power_max_kw=settings.power_max_kw)


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


PAGES = (
    Page(path="/vehicles/{id}", handler=show_vehicle),
    Page(path="/vehicles/{id}/data", handler=send_vehicle_data, is_for_scripts=True),
    Page(path="/meters/{id}", handler=show_meter),
    Page(path="/meters/{id}/data", handler=send_meter_data, is_for_scripts=True),
)
