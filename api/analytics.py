"""How much energy is lost between meter and vehicle. What a number means is in docs/energy.md."""

from collections.abc import Awaitable, Callable, Hashable
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from starlette.datastructures import Headers
from starlette.responses import Response

from api.contract import JSON, Answer, Call, Operation, Sidecar
from api.errors import ProblemError
from api.links import VehiclePath
from api.params import DeviceId, NoQuery, TimeZone, Window, window, zone
from sql import analytics
from sql.analytics import (
    Flags,
    FleetPerformance,
    MeterShare,
    Performance,
    Rules,
)
from sql.fleet import VehicleSummary
from sql.pool import Connection
from sql.series import DAYS_DEFAULT, PerformanceSeries, Point, Step, default_start, series

SPAN_MAX = timedelta(days=366)
WORST_DEFAULT = 10
_MISSING = "Nobody knows the vehicle {}: it has sent no reading and is not linked"


class VehicleWindow(Window, frozen=True, kw_only=True, rename="camel"):
    """A vehicle and a window."""

    vehicle_id: DeviceId


class FleetWindow(Window, frozen=True, kw_only=True):
    """A window, and how many of the worst to name."""

    worst: Annotated[int, Meta(ge=0, le=100, description="a whole number from 0 to 100", examples=[10])] = WORST_DEFAULT


class SeriesWindow(Window, frozen=True, kw_only=True):
    """A window and what its points are."""

    step: Annotated[Step, Meta(description="hour or day", examples=["day"])] = "hour"
    tz: TimeZone = "UTC"

    def default_start(self, end: datetime) -> datetime:
        """A day before its end, or with the first of some local days."""
        return default_start(end, self.step, zone(self.tz))


async def performance(call: Call[VehiclePath, Window, None]) -> Response:
    """The performance of the vehicle in the path."""
    return await _performance(call.sidecar, call.path.vehicle_id, call.query, call.request.headers)


async def performance_by_query(call: Call[NoQuery, VehicleWindow, None]) -> Response:
    """The performance of the vehicle in the query."""
    return await _performance(call.sidecar, call.query.vehicle_id, call.query, call.request.headers)


async def performance_series(call: Call[VehiclePath, SeriesWindow, None]) -> Response:
    """The performance of the vehicle in the path by local hour or day."""
    vehicle_id, asked, rules = call.path.vehicle_id, call.query, _rules(call.sidecar)
    local = zone(asked.tz)

    async def find(connection: Connection, start: datetime, end: datetime) -> PerformanceSeries | None:
        return await series(connection, vehicle_id, start, end, rules, asked.step, local)

    subject = ("series", vehicle_id, asked.step, asked.tz)
    missing = _MISSING.format(vehicle_id)
    return await _cached(call.sidecar, subject, asked, SPAN_MAX, find, call.request.headers, missing)


async def fleet(call: Call[NoQuery, FleetWindow, None]) -> Response:
    """The performance of all."""
    asked, rules = call.query, _rules(call.sidecar)

    async def find(connection: Connection, start: datetime, end: datetime) -> FleetPerformance:
        return await analytics.fleet(connection, start, end, rules, asked.worst)

    return await _cached(call.sidecar, ("fleet", asked.worst), asked, SPAN_MAX, find, call.request.headers, "No fleet")


async def _performance(sidecar: Sidecar, vehicle_id: str, asked: Window, headers: Headers) -> Response:
    rules = _rules(sidecar)

    async def find(connection: Connection, start: datetime, end: datetime) -> Performance | None:
        return await analytics.performance(connection, vehicle_id, start, end, rules)

    subject, missing = ("vehicle", vehicle_id), _MISSING.format(vehicle_id)
    return await _cached(sidecar, subject, asked, SPAN_MAX, find, headers, missing)


async def _cached(
    sidecar: Sidecar,
    subject: Hashable,
    asked: Window,
    span_max: timedelta,
    find: Callable[[Connection, datetime, datetime], Awaitable[Struct | None]],
    headers: Headers,
    missing: str,
) -> Response:
    # The window is checked here and made again where it is computed: one that ends now ends when the query runs.
    window(asked, datetime.now(UTC), span_max)

    async def compute() -> bytes:
        start, end = window(asked, datetime.now(UTC), span_max)
        async with sidecar.database.connection() as connection:
            found = await find(connection, start, end)
        if found is None:
            raise ProblemError(404, missing)
        return msgspec.json.encode(found)

    entry = await sidecar.cache.get((subject, asked.start, asked.end), compute)
    seconds_left = sidecar.cache.seconds_left(entry)
    freshness = f"private, max-age={seconds_left}" if seconds_left else "private, no-cache"
    cache_headers = {"ETag": entry.etag, "Cache-Control": freshness, "Vary": "Authorization"}
    if _matches(headers.get("if-none-match", ""), entry.etag):
        return Response(status_code=304, headers=cache_headers)
    return Response(entry.body, headers=cache_headers, media_type=JSON)


def _rules(sidecar: Sidecar) -> Rules:
    return Rules(low_efficiency=sidecar.settings.low_efficiency, power_max_kw=sidecar.settings.power_max_kw)


def _matches(if_none_match: str, etag: str) -> bool:
    given = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in given or etag in given


_FROM = datetime(2026, 3, 13, 15, tzinfo=UTC)
_TO = datetime(2026, 3, 14, 15, tzinfo=UTC)
_EXAMPLE = Performance(
    vehicle_id="vehicle-0001",
    start=_FROM,
    end=_TO,
    ac_kwh=24.0,
    dc_kwh=21.6,
    loss_kwh=2.4,
    efficiency=0.9,
    avg_battery_temp=24.1,
    samples=1440,
    meter_samples=1440,
    coverage=1.0,
    vehicle_coverage=1.0,
    meter_coverage=1.0,
    energy_mode="interval",
    meters=[MeterShare("meter-0001", "interval", 24.0, 1440, _FROM, _TO)],
    flags=Flags(0, 0, 0, 0),
    status="ok",
    reason="21.600 kWh DC of 24.000 kWh AC is an efficiency of 0.9, at least 0.85.",
    dc_kwh_unlinked=0.0,
    fleet_ac_share=None,
)
_SERIES_EXAMPLE = PerformanceSeries(
    vehicle_id="vehicle-0001",
    start=datetime(2026, 3, 28, 23, tzinfo=UTC),
    end=datetime(2026, 3, 29, 22, tzinfo=UTC),
    step="day",
    tz="Europe/Berlin",
    points=[
        Point(
            start=datetime(2026, 3, 28, 23, tzinfo=UTC),
            end=datetime(2026, 3, 29, 22, tzinfo=UTC),
            ac_kwh=24.0,
            dc_kwh=21.6,
            loss_kwh=2.4,
            efficiency=0.9,
            avg_battery_temp=24.1,
            samples=1380,
            meter_samples=1380,
            coverage=1.0,
            status="ok",
            dc_kwh_unlinked=0.0,
        )
    ],
)
_FLEET_EXAMPLE = FleetPerformance(
    start=_FROM,
    end=_TO,
    ac_kwh=480.0,
    dc_kwh=422.4,
    loss_kwh=57.6,
    efficiency=0.88,
    vehicles=21,
    linked=20,
    status_counts={"ok": 19, "low_efficiency": 1, "unlinked": 1},
    worst=[VehicleSummary("vehicle-0007", 24.0, 16.8, 7.2, 0.7, 1.0, "low_efficiency")],
    unlinked_ac_kwh=0.0,
    unlinked_dc_kwh=3.1,
)
_HEADERS = {
    "ETag": "changes when the answer does; send it in If-None-Match",
    "Cache-Control": "for how long the answer is good",
}
_NOT_MODIFIED = Answer("What the client has is still right", headers=_HEADERS)
_ANSWERS = {200: Answer("The performance", Performance, {JSON: _EXAMPLE}, headers=_HEADERS), 304: _NOT_MODIFIED}
_SERIES_TEXT = f"""A point for each hour or day of the local clock in `tz`, with what the performance says of it; those
without readings too. The first and the last one are cut to `from` (included) and `to` (excluded), at most
{SPAN_MAX.days} days. Left out: the last 24 hours, or the last {DAYS_DEFAULT} local days, today included."""
_WINDOW_TEXT = (
    "Over the last 24 hours, or `from` (included) to `to` (excluded) on the readings' own time, at most {days} days."
)

OPERATIONS = (
    Operation(
        id="performance",
        method="GET",
        path="/analytics/performance/{vehicleId}",
        tag="Analytics",
        summary="How much energy a vehicle loses",
        description=_WINDOW_TEXT.format(days=SPAN_MAX.days),
        handler=performance,
        path_type=VehiclePath,
        query=Window,
        answers=_ANSWERS,
        problems=(404,),
    ),
    Operation(
        id="performanceByQuery",
        method="GET",
        path="/analytics/performance",
        tag="Analytics",
        summary="The same, with the vehicle in the query",
        description=_WINDOW_TEXT.format(days=SPAN_MAX.days),
        handler=performance_by_query,
        query=VehicleWindow,
        answers=_ANSWERS,
        problems=(404,),
    ),
    Operation(
        id="performanceSeries",
        method="GET",
        path="/analytics/series/{vehicleId}",
        tag="Analytics",
        summary="How much energy a vehicle loses by local hour or day",
        description=_SERIES_TEXT,
        handler=performance_series,
        path_type=VehiclePath,
        query=SeriesWindow,
        answers={
            200: Answer("The series", PerformanceSeries, {JSON: _SERIES_EXAMPLE}, headers=_HEADERS),
            304: _NOT_MODIFIED,
        },
        problems=(404,),
    ),
    Operation(
        id="fleet",
        method="GET",
        path="/analytics/fleet",
        tag="Analytics",
        summary="The fleet's totals, ratio and worst vehicles",
        description=_WINDOW_TEXT.format(days=SPAN_MAX.days),
        handler=fleet,
        query=FleetWindow,
        answers={
            200: Answer("The performance", FleetPerformance, {JSON: _FLEET_EXAMPLE}, headers=_HEADERS),
            304: _NOT_MODIFIED,
        },
    ),
)
