"""Most of a fleet at once: of the whole hours of a window that are rolled up, subtraction tells what they come to.

A cell of an hour knows what its UTC day comes to by its end, so nothing between the first hour of the window and its
last has to be added up. Before and behind them the readings of a device are, in the same query. Whoever needs a closer
look is named and left to `sql.analytics`.
"""

import re
from datetime import datetime, timedelta
from functools import cache
from typing import Literal, TypeAlias

from msgspec import Struct, field

from sql.hours import DAY, HOUR, day_floor, hour_ceiling, hour_floor
from sql.measure import CADENCE_S, STEP_S_MAX, rollup_state
from sql.pool import Connection
from sql.queries import query
from sql.store import METER, VEHICLE, Kind

Verdict: TypeAlias = Literal["ok", "low_efficiency", "insufficient_data", "above_unity", "no_ac_energy", "unlinked"]

DIGITS = 6
"""Answers are in mWh: beyond that there is only the noise of adding up."""


class VehicleSummary(Struct, frozen=True, rename="camel"):
    """One of the fleet's worst vehicles."""

    vehicle_id: str
    ac_kwh: float
    dc_kwh: float
    loss_kwh: float | None
    efficiency: float | None
    coverage: float
    status: Verdict


LATE_MAX = 1000
"""Devices with late readings that are told apart."""
EDGE_MAX = 3 * HOUR
"""How far the rollups may lie behind the end of a window. What counters count is made an hour later than the rest."""


class Summable(Struct, frozen=True):
    """What of a window can be summed up."""

    first: datetime
    behind: datetime
    """Whole hours from `first` to before `behind`."""
    late_meters: list[str]
    late_vehicles: list[str]
    """Devices that are left out, since readings came late."""
    tame: list[datetime]
    """Hours in which a counter must have behaved well to be summed up."""


class FleetSums(Struct):
    """What most devices of the fleet come to, and which are not in it."""

    verdicts: dict[Verdict, int] = field(default_factory=dict)
    ac_kwh: float = 0.0
    dc_kwh: float = 0.0
    """Of linked vehicles, as the one before."""
    unlinked_ac_kwh: float = 0.0
    unlinked_dc_kwh: float = 0.0
    worst: list[VehicleSummary] = field(default_factory=list)
    odd_vehicles: list[str] = field(default_factory=list)
    odd_meters: list[str] = field(default_factory=list)


async def find_summable(connection: Connection, start: datetime, end: datetime, power_max_kw: float) -> Summable | None:
    """What of the window [start, end) can be summed up, None if nothing.

    It can if there are whole hours in it that are rolled up with that POWER_MAX_KW.
    """
    states = [await rollup_state(connection, kind) for kind in (METER, VEHICLE)]
    has_counters = await connection.fetchval(query("has_counters"))
    complete = min(state.counted_through if has_counters else state.rolled_through for state in states)
    first, behind = hour_ceiling(start), min(hour_floor(end), complete)
    if first >= behind or end - behind > EDGE_MAX:
        return None
    if any(state.power_max_kw != power_max_kw for state in states):
        return None
    late = []
    for kind in (METER, VEHICLE):
        rows = await connection.fetch(kind.query("list_late_devices"), behind, LATE_MAX + 1)
        late.append([row["id"] for row in rows])
        if len(rows) > LATE_MAX or "" in late[-1]:  # without a name it stands for all
            return None
    late_meters, late_vehicles = late
    # What a counter counts depends on its own UTC hour and on the one before.
    tame = [first - 2 * HOUR, first - HOUR] if has_counters and start < first else []
    tame += [behind - HOUR] if has_counters and behind < end else []
    return Summable(first, behind, late_meters, late_vehicles, tame)


async def sum_fleet(
    connection: Connection,
    start: datetime,
    end: datetime,
    low_efficiency: float,
    min_ac_kwh: float,
    min_coverage: float,
    power_max_kw: float,
    worst: int,
    summable: Summable,
) -> FleetSums:
    """The sums of the window [start, end), as far as that can be done, with the `worst` vehicles among them."""
    hours = (summable.first, summable.behind)
    last = summable.behind - HOUR
    first_day, last_day = day_floor(summable.first), day_floor(last)
    bounds = (start, end, last, first_day, last_day)
    limits = (low_efficiency, min_ac_kwh, min_coverage)
    left_out = (summable.late_meters, summable.late_vehicles, summable.tame)
    has_edges = hours != (start, end)
    edges = (start - timedelta(seconds=STEP_S_MAX), STEP_S_MAX, CADENCE_S, power_max_kw) if has_edges else ()
    sums = FleetSums()
    text = statement(has_edges, last_day - first_day > DAY)
    for row in await connection.fetch(text, *bounds, *limits, worst, *left_out, *hours, *edges):
        match row["part"]:
            case "verdict":
                sums.verdicts[row["status"]] = row["vehicles"]
                if row["status"] == "unlinked":
                    sums.unlinked_dc_kwh = row["dc_kwh"]
                else:
                    sums.ac_kwh += row["ac_kwh"]
                    sums.dc_kwh += row["dc_kwh"]
            case "worst":
                sums.worst.append(_summary(row["id"], row["ac_kwh"], row["dc_kwh"], row["coverage"], row["status"]))
            case "unlinked meters":
                sums.unlinked_ac_kwh = row["ac_kwh"] or 0.0
            case "odd vehicle":
                sums.odd_vehicles.append(row["id"])
            case "odd meter":
                sums.odd_meters.append(row["id"])
    return sums


@cache
def statement(has_edges: bool, has_days: bool) -> str:
    """`sum_fleet` with `sum_hours` of both kinds in it, and the parts of these.

    `has_edges`: the window has more than whole hours. `has_days`: it is of more than two UTC days.
    """
    hours = {kind.name: _hours(kind, late, has_edges, has_days) for kind, late in ((METER, "$10"), (VEHICLE, "$11"))}
    return re.sub(r"\{(\w+)_hours\}", lambda found: hours[found[1]], query("sum_fleet"))


def _hours(kind: Kind, late: str, has_edges: bool, has_days: bool) -> str:
    days = _as_part(kind.query("sum_days") if has_days else kind.query("sum_day"))
    edges = [kind.query("sum_edge", **words) for words in (_LEAD, _TRAIL) if has_edges]
    parts = "".join(f"UNION ALL\n{_as_part(edge)}\n" for edge in edges)
    return _as_part(kind.query("sum_hours", late=late, days=days, edges=parts))


def _as_part(text: str) -> str:
    return text.removesuffix(";\n")


_LEAD = {
    "start": "$1",
    "end": "$13",
    "before": "$15",
    "hour": "$13",
    "silence": "lead_s",
    "cadence": "first_cadence_s",
    "outer": "lead",
    "inner": "trail",
}
_TRAIL = {
    "start": "$14",
    "end": "$2",
    "before": "$3",
    "hour": "$3",
    "silence": "trail_s",
    "cadence": "last_cadence_s",
    "outer": "trail",
    "inner": "lead",
}


def _summary(vehicle_id: str, ac_kwh: float, dc_kwh: float, coverage: float, status: Verdict) -> VehicleSummary:
    return VehicleSummary(
        vehicle_id=vehicle_id,
        ac_kwh=ac_kwh,
        dc_kwh=dc_kwh,
        loss_kwh=round(ac_kwh - dc_kwh, DIGITS),
        efficiency=round(dc_kwh / ac_kwh, DIGITS),
        coverage=coverage,
        status=status,
    )
