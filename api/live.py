"""Live state and history of meters and vehicles: the same routes for both kinds."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from starlette.responses import Response

from api.contract import CSV, JSON, NDJSON, Answer, Call, Operation, Page, answer
from api.errors import ProblemError, invalid
from api.export import Export, wanted_format
from api.params import LIMIT_DEFAULT, DeviceId, Limit, NoQuery, Window, window
from sql import devices
from sql.devices import MeterHistory, MeterStatus, VehicleHistory, VehicleStatus
from sql.store import METER, VEHICLE, Kind

SPAN_MAX = timedelta(days=366)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR = "`next` of the page before, unchanged"

IdCursor = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}\Z", description=_CURSOR, examples=["vehicle-0100"])]
TimeCursor = Annotated[str, Meta(pattern=r"^[0-9]{1,17}\Z", description=_CURSOR, examples=["1773500400000000"])]


Format = Annotated[
    Literal["json", "csv", "ndjson"],
    Meta(description="json, csv or ndjson; left out: what Accept says", examples=["csv"]),
]


class DeviceOnPath(Struct, frozen=True):
    """A device in the path."""

    id: DeviceId


class DevicePage(Struct, frozen=True):
    """Which page of the devices."""

    cursor: IdCursor | None = None
    limit: Limit = LIMIT_DEFAULT


class ReadingsWindow(Window, frozen=True, kw_only=True):
    """Which readings, and how."""

    format: Format | None = None
    cursor: TimeCursor | None = None
    limit: Limit | None = None


class MeterPage(Page[MeterStatus], frozen=True):
    """Meters in the order of their ids."""


class VehiclePage(Page[VehicleStatus], frozen=True):
    """Vehicles in the order of their ids."""


class MeterReadingPage(Page[MeterHistory], frozen=True):
    """Readings of a meter in the order of time."""


class VehicleReadingPage(Page[VehicleHistory], frozen=True):
    """Readings of a vehicle in the order of time."""


Handler = Callable[[Call[Any, Any, Any]], Awaitable[Response]]


def _list(kind: Kind) -> Handler:
    async def list_devices(call: Call[NoQuery, DevicePage, None]) -> Response:
        asked = call.query
        async with call.sidecar.database.connection() as connection:
            found = await devices.list_status(connection, kind, after=asked.cursor, limit=asked.limit + 1)
        items = list(found[: asked.limit])
        return answer(Page(items, items[-1].id if len(found) > asked.limit else None))

    return list_devices


def _get(kind: Kind) -> Handler:
    async def get_device(call: Call[DeviceOnPath, NoQuery, None]) -> Response:
        async with call.sidecar.database.connection() as connection:
            status = await devices.get_status(connection, kind, call.path.id)
        if status is None:
            raise unknown(kind, call.path.id)
        return answer(status)

    return get_device


def _readings(kind: Kind) -> Handler:
    async def list_readings(call: Call[DeviceOnPath, ReadingsWindow, None]) -> Response:
        asked = call.query
        start, end = window(asked, datetime.now(UTC), SPAN_MAX)
        file_format = wanted_format(asked.format, call.request.headers.get("accept", ""))
        if file_format != "json":
            for name in ("cursor", "limit"):
                if getattr(asked, name) is not None:
                    raise invalid("query", name, f"`{name}` is for pages of JSON; {file_format} has the whole window")
            await _check_known(call, kind)
            return await Export(call.sidecar.database, kind, call.path.id, start, end, file_format).begin()
        return await _page(call, kind, start, end)

    return list_readings


async def _page(call: Call[DeviceOnPath, ReadingsWindow, None], kind: Kind, start: datetime, end: datetime) -> Response:
    limit = call.query.limit or LIMIT_DEFAULT
    after = _EPOCH + timedelta(microseconds=int(call.query.cursor)) if call.query.cursor else None
    async with call.sidecar.database.connection() as connection:
        found = await devices.list_readings(connection, kind, call.path.id, start, end, after=after, limit=limit + 1)
        is_known = found or await devices.get_status(connection, kind, call.path.id)
    if not is_known:
        raise unknown(kind, call.path.id)
    items = list(found[:limit])
    following = (items[-1].ts - _EPOCH) // timedelta(microseconds=1) if len(found) > limit else None
    return answer(Page(items, None if following is None else str(following)), headers={"Vary": "Accept"})


async def _check_known(call: Call[DeviceOnPath, ReadingsWindow, None], kind: Kind) -> None:
    async with call.sidecar.database.connection() as connection:
        status = await devices.get_status(connection, kind, call.path.id)
    if status is None:
        raise unknown(kind, call.path.id)


def unknown(kind: Kind, device_id: str) -> ProblemError:
    """404 for a device without a reading."""
    return ProblemError(404, f"Nobody knows the {kind.name} {device_id}: it has sent no reading")


_TS = datetime(2026, 3, 14, 15, tzinfo=UTC)
_RECEIVED = _TS + timedelta(milliseconds=480)
_METER = MeterStatus(
    id="meter-0001",
    ts=_TS,
    age_s=12.3,
    received_at=_RECEIVED,
    energy_mode="interval",
    kwh_consumed_ac=0.183,
    voltage=230.4,
)
_VEHICLE = VehicleStatus(
    id="vehicle-0001",
    ts=_TS,
    age_s=12.3,
    received_at=_RECEIVED,
    energy_mode="interval",
    soc=61.5,
    kwh_delivered_dc=0.164,
    battery_temp=24.1,
)
_METER_READING = MeterHistory(_TS, _RECEIVED, 0.183, 230.4)
_VEHICLE_READING = VehicleHistory(_TS, _RECEIVED, 61.5, 0.164, 24.1)


def _operations(
    kind: Kind, status: MeterStatus | VehicleStatus, reading: MeterHistory | VehicleHistory, csv: str
) -> tuple[Operation, ...]:
    plural, title = f"{kind.name}s", kind.name.title()
    page = {METER: MeterPage, VEHICLE: VehiclePage}[kind]
    readings_page = {METER: MeterReadingPage, VEHICLE: VehicleReadingPage}[kind]
    return (
        Operation(
            id=f"list{title}s",
            method="GET",
            path=f"/{plural}",
            tag="Live and history",
            summary=f"Live state of all {plural}",
            handler=_list(kind),
            query=DevicePage,
            answers={200: Answer(f"A page of {plural}", page, {JSON: Page([status], None)})},
        ),
        Operation(
            id=f"get{title}",
            method="GET",
            path=f"/{plural}/{{id}}",
            tag="Live and history",
            summary=f"Live state of a {kind.name}",
            handler=_get(kind),
            path_type=DeviceOnPath,
            answers={200: Answer("Its newest reading", type(status), {JSON: status})},
            problems=(404,),
        ),
        Operation(
            id=f"list{title}Readings",
            method="GET",
            path=f"/{plural}/{{id}}/readings",
            tag="Live and history",
            summary=f"Readings of a {kind.name}",
            description=(
                "From `from` (included) to `to` (excluded), by default the last 24 hours, at most "
                f"{SPAN_MAX.days} days. Pages of JSON; or, by `format` or the header Accept, the whole window as CSV "
                "or NDJSON."
            ),
            handler=_readings(kind),
            path_type=DeviceOnPath,
            query=ReadingsWindow,
            answers={
                200: Answer(
                    "Readings in the order of time",
                    readings_page,
                    {JSON: Page([reading], None), CSV: csv},
                    media_types=(JSON, CSV, NDJSON),
                )
            },
            problems=(404,),
        ),
    )


OPERATIONS = (
    *_operations(
        METER,
        _METER,
        _METER_READING,
        "ts,receivedAt,kwhConsumedAc,voltage\r\n2026-03-14T15:00:00Z,2026-03-14T15:00:00.480000Z,0.183,230.4\r\n",
    ),
    *_operations(
        VEHICLE,
        _VEHICLE,
        _VEHICLE_READING,
        "ts,receivedAt,soc,kwhDeliveredDc,batteryTemp\r\n"
        "2026-03-14T15:00:00Z,2026-03-14T15:00:00.480000Z,61.5,0.164,24.1\r\n",
    ),
)
