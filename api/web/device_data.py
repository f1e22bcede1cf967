"""What the charts of a device's page are drawn from, as columns: one value for each step, null where there is none.

| column | is |
| --- | --- |
| `…Kwh` | what was counted in the step; the steps add up to what the page says of the window |
| `…Kw` | the same as an average power |
| `soc`, `batteryTemp`, `voltage` | the average of the readings |
| `efficiency` | by steps of an hour at least, and only of those with energy and readings enough |

Power is that of the time that readings cover. None is given of a step of which they cover little, or that the window
cuts to less than an hour, where one reading more or less is too much; and no power or efficiency of a counter behind a
silence, since that step has the energy of the silence too. Before a window there may have been one.

Times are Unix seconds at which steps begin; the last step ends with `to`.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby

from msgspec import Struct, field

from sql.analytics import COVERED, Performance, Rules, judged_efficiencies, performances
from sql.cells import Total
from sql.chart import Span, Steps, gauges, meter_steps, spans, step_floor, vehicle_steps
from sql.devices import EnergyMode
from sql.fleet import DIGITS
from sql.hours import DAY, HOUR
from sql.pool import Connection
from sql.store import METER, VEHICLE

Column = list[float | None]

KW_DIGITS = 4
COVERED_MIN = 0.5
"""The share of a step that readings cover where they say what its power was."""
GAUGE_DIGITS = 2
BARS_BY_HOUR_MAX = 8 * DAY
"""The longest window whose energy is shown by hour and not by day."""


class VehicleData(Struct, frozen=True, kw_only=True, rename="camel"):
    """The charts of a vehicle."""

    start: int = field(name="from")
    end: int = field(name="to")
    step_s: int
    times: list[int]
    ac_kwh: Column
    dc_kwh: Column
    """While it was linked with a meter."""
    dc_unlinked_kwh: Column
    ac_kw: Column
    dc_kw: Column
    dc_unlinked_kw: Column
    soc: Column
    battery_temp: Column
    efficiency_step_s: int
    efficiency_times: list[int]
    efficiency: Column
    low_efficiency: float


class MeterData(Struct, frozen=True, kw_only=True, rename="camel"):
    """The charts of a meter."""

    start: int = field(name="from")
    end: int = field(name="to")
    step_s: int
    times: list[int]
    ac_kwh: Column
    ac_kw: Column
    voltage: Column
    energy_step_s: int
    energy_times: list[int]
    energy_kwh: Column


async def vehicle_data(
    connection: Connection, vehicle_id: str, start: datetime, end: datetime, rules: Rules
) -> VehicleData | None:
    """The columns of a vehicle, or None where nobody knows it."""
    steps = await vehicle_steps(connection, vehicle_id, start, end, rules)
    if steps is None:
        return None
    shown = await gauges(connection, VEHICLE, vehicle_id, start, end, steps.step)
    judged = await _judged(connection, vehicle_id, start, end, rules, steps)
    ac_kwh = [one.ac_kwh if one.meter_samples else None for one in steps.found]
    dc_kwh = [one.dc_kwh if one.samples and one.meters else None for one in steps.found]
    unlinked_kwh = [_unlinked_kwh(one) for one in steps.found]
    modes = [one.energy_mode for one in steps.found]
    covered = [one.vehicle_coverage for one in steps.found]
    meter_modes = [one.meters[0].energy_mode if one.meters else "interval" for one in steps.found]
    return VehicleData(
        start=_unix(start),
        end=_unix(end),
        step_s=_seconds(steps.step),
        times=_times(steps.spans),
        ac_kwh=ac_kwh,
        dc_kwh=dc_kwh,
        dc_unlinked_kwh=unlinked_kwh,
        ac_kw=_power(steps.spans, steps.step, ac_kwh, meter_modes, [one.meter_coverage for one in steps.found]),
        dc_kw=_power(steps.spans, steps.step, dc_kwh, modes, covered),
        dc_unlinked_kw=_power(steps.spans, steps.step, unlinked_kwh, modes, covered),
        soc=_gauge(shown, "soc"),
        battery_temp=_gauge(shown, "battery_temp"),
        efficiency_step_s=_seconds(judged.step),
        efficiency_times=_times(judged.spans),
        efficiency=judged_efficiencies(judged.found),
        low_efficiency=rules.low_efficiency,
    )


async def meter_data(
    connection: Connection, meter_id: str, energy_mode: EnergyMode, start: datetime, end: datetime, rules: Rules
) -> MeterData:
    """The columns of a meter."""
    steps = await meter_steps(connection, meter_id, energy_mode, start, end, rules.power_max_kw)
    shown = await gauges(connection, METER, meter_id, start, end, steps.step)
    ac_kwh = [round(one.kwh, DIGITS) if one.samples else None for one in steps.found]
    covered = [
        one.covered_s / (ends - begins).total_seconds()
        for one, (begins, ends) in zip(steps.found, steps.spans, strict=True)
    ]
    bar = max(steps.step, HOUR if end - start <= BARS_BY_HOUR_MAX else DAY)
    bars = _summed(steps, bar)
    return MeterData(
        start=_unix(start),
        end=_unix(end),
        step_s=_seconds(steps.step),
        times=_times(steps.spans),
        ac_kwh=ac_kwh,
        ac_kw=_power(steps.spans, steps.step, ac_kwh, [energy_mode] * len(ac_kwh), covered),
        voltage=_gauge(shown, "voltage"),
        energy_step_s=_seconds(bar),
        energy_times=[_unix(begins) for begins in bars],
        energy_kwh=list(bars.values()),
    )


async def _judged(
    connection: Connection,
    vehicle_id: str,
    start: datetime,
    end: datetime,
    rules: Rules,
    steps: Steps[Performance],
) -> Steps[Performance]:
    """Steps that are long enough for a verdict: in a few minutes there is hardly the kWh that it takes."""
    if steps.step >= HOUR:
        return steps
    hours = spans(start, end, HOUR)
    return Steps(HOUR, hours, await performances(connection, vehicle_id, hours, rules) or [])


def _unlinked_kwh(one: Performance) -> float | None:
    """None also where it was linked and nothing is left over."""
    if not one.samples or (one.meters and not one.dc_kwh_unlinked):
        return None
    return one.dc_kwh_unlinked


def _power(
    cut: Sequence[Span], step: timedelta, kwh: Column, modes: Sequence[EnergyMode], coverage: Sequence[float]
) -> Column:
    """On average over what readings cover of each step; None where that is little, or nothing tells."""
    power: Column = []
    covered_before = 0.0
    for (start, end), energy, mode, covered in zip(cut, kwh, modes, coverage, strict=True):
        is_cut = end - start < min(step, HOUR)
        is_behind_silence = mode != "interval" and covered_before < COVERED
        is_known = covered >= COVERED_MIN and not is_cut and not is_behind_silence
        # A counter's readings have the energy of all of the step, also of what none of them covers.
        hours = (end - start) / HOUR * (covered if mode == "interval" else 1)
        power.append(round(energy / hours, KW_DIGITS) if energy is not None and is_known else None)
        covered_before = covered
    return power


def _summed(steps: Steps[Total], bar: timedelta) -> dict[datetime, float | None]:
    """The energy by longer steps, which are put together of whole ones; None where there was no reading."""
    pairs: Iterable[tuple[Span, Total]] = zip(steps.spans, steps.found, strict=True)
    summed: dict[datetime, float | None] = {}
    for begins, parts in groupby(pairs, key=lambda pair: step_floor(pair[0][0], bar)):
        totals = [total for _, total in parts if total.samples]
        summed[begins] = round(sum(total.kwh for total in totals), DIGITS) if totals else None
    return summed


def _gauge(shown: Sequence[Mapping[str, float] | None], gauge: str) -> Column:
    return [round(one[gauge], GAUGE_DIGITS) if one else None for one in shown]


def _times(cut: Sequence[Span]) -> list[int]:
    return [_unix(start) for start, _ in cut]


def _unix(moment: datetime) -> int:
    return int(moment.timestamp())


def _seconds(length: timedelta) -> int:
    return int(length.total_seconds())
