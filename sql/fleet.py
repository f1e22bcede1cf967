"""Most of a fleet at once: in a window of whole hours that are rolled up, subtraction tells what a device comes to.

A cell of an hour knows what its UTC day comes to by its end, so nothing between the first hour of the window and its
last has to be added up. Whoever needs a closer look is named and left to `sql.analytics`.
"""

import re
from datetime import datetime
from functools import cache
from typing import Literal, TypeAlias

from msgspec import Struct, field

from sql.hours import DAY, HOUR, day_floor, hour_floor
from sql.measure import rollup_state
from sql.pool import Connection
from sql.queries import query
from sql.store import METER, VEHICLE

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


Unsummed: TypeAlias = tuple[list[str], list[str], bool]
"""Meters and vehicles of which readings came late, and whether counters can be summed up."""
LATE_MAX = 1000
"""Devices with late readings that are told apart."""


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


async def find_late(connection: Connection, start: datetime, end: datetime, power_max_kw: float) -> Unsummed | None:
    """What is left out of the sums; None where a window [start, end) cannot be summed up.

    It can, if it is whole hours of one UTC day or of two, all rolled up with that POWER_MAX_KW.
    """
    if start != hour_floor(start) or end != hour_floor(end) or day_floor(end - HOUR) - day_floor(start) > DAY:
        return None
    late, is_counted = [], True
    for kind in (METER, VEHICLE):
        state = await rollup_state(connection, kind)
        rows = await connection.fetch(kind.query("list_late_devices"), end, LATE_MAX + 1)
        late.append([row["id"] for row in rows])
        is_rolled_up = state.rolled_through >= end and state.power_max_kw == power_max_kw
        if not is_rolled_up or len(rows) > LATE_MAX or "" in late[-1]:  # without a name it stands for all
            return None
        is_counted &= state.counted_through >= end
    return late[0], late[1], is_counted


async def sum_fleet(
    connection: Connection,
    start: datetime,
    end: datetime,
    low_efficiency: float,
    min_ac_kwh: float,
    min_coverage: float,
    worst: int,
    late: Unsummed,
) -> FleetSums:
    """The sums of a window for which that can be done, with the `worst` vehicles among them."""
    last = end - HOUR
    bounds = (start, end, last, day_floor(start), day_floor(last))
    sums = FleetSums()
    limits = (low_efficiency, min_ac_kwh, min_coverage)
    for row in await connection.fetch(statement(), *bounds, *limits, worst, *late):
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
def statement() -> str:
    """`sum_fleet` with `sum_hours` of both kinds in it, which differ in the number of one parameter."""
    hours = {
        kind.name: kind.query("sum_hours", late=late).removesuffix(";\n")
        for kind, late in ((METER, "$10"), (VEHICLE, "$11"))
    }
    return re.sub(r"\{(\w+)_hours\}", lambda found: hours[found[1]], query("sum_fleet"))


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
