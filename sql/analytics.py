"""How much energy went in, how much arrived, and whether that is bad. docs/energy.md says what a number means.

Energy is derived when it is asked for: `sql.measure` says what each device comes to in the spans in which it was linked
and outside of them, from readings and rollups. What follows from that is computed here.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import TypeAlias, get_args

from msgspec import Struct, field
from msgspec.structs import replace

from sql.cells import Total
from sql.devices import EnergyMode, find_mode
from sql.fleet import DIGITS, FleetSums, VehicleSummary, Verdict, find_summable, sum_fleet
from sql.measure import Piece, measure
from sql.pool import Connection
from sql.queries import query
from sql.store import METER, VEHICLE, Kind

COVERED = 0.9
"""The share of a step behind which a counter's next step has no energy of a silence to speak of."""


class Rules(Struct, frozen=True):
    """What an answer depends on besides the readings."""

    low_efficiency: float = 0.85
    power_max_kw: float = 500
    min_ac_kwh: float = 1.0
    min_coverage: float = 0.5


class MeterShare(Struct, frozen=True, rename="camel"):
    """What one meter counted for the vehicle in one span of the window in which they were linked."""

    meter_id: str
    energy_mode: EnergyMode
    ac_kwh: float
    samples: int
    linked_from: datetime
    linked_to: datetime


class Flags(Struct, frozen=True, rename="camel"):
    """How often the counters of the vehicle, and of its meters while linked, behaved oddly in the window."""

    impossible_steps: int = 0
    resets: int = 0
    dips: int = 0
    glitches: int = 0


class Performance(Struct, frozen=True, rename="camel", kw_only=True):
    """The energy of one vehicle in the window [start, end)."""

    vehicle_id: str
    start: datetime = field(name="from")
    end: datetime = field(name="to")
    ac_kwh: float
    dc_kwh: float
    loss_kwh: float | None
    efficiency: float | None
    avg_battery_temp: float | None
    samples: int
    meter_samples: int
    coverage: float
    """The lesser of the next two: a verdict needs both sides."""
    vehicle_coverage: float
    meter_coverage: float
    energy_mode: EnergyMode
    meters: list[MeterShare]
    flags: Flags
    status: Verdict
    reason: str
    dc_kwh_unlinked: float
    fleet_ac_share: float | None = None
    """Only for an unlinked vehicle: fleet_ac_kwh * dc_kwh / fleet_dc_kwh."""
    fleet_ac_kwh: float | None = None
    fleet_dc_kwh: float | None = None


class FleetPerformance(Struct, frozen=True, rename="camel", kw_only=True):
    """The energy of all vehicles and meters in the window [start, end)."""

    start: datetime = field(name="from")
    end: datetime = field(name="to")
    ac_kwh: float
    dc_kwh: float
    loss_kwh: float | None
    efficiency: float | None
    vehicles: int
    linked: int
    status_counts: dict[str, int]
    worst: list[VehicleSummary]
    unlinked_ac_kwh: float
    unlinked_dc_kwh: float


class _Window(Struct, frozen=True):
    start: datetime
    end: datetime
    rules: Rules


class _Span(Struct, frozen=True):
    """A link, cut to the window."""

    vehicle_id: str
    meter_id: str
    energy_mode: EnergyMode
    linked_from: datetime
    linked_to: datetime


_Modes: TypeAlias = Mapping[str, EnergyMode]
_BySpan: TypeAlias = Mapping[tuple[str, _Span | None], Total]
"""By device and span; None is what lies outside of all spans."""


async def performance(
    connection: Connection, vehicle_id: str, start: datetime, end: datetime, rules: Rules
) -> Performance | None:
    """The vehicle's energy in [start, end), or None where nobody knows the vehicle."""
    answers = await performances(connection, vehicle_id, [(start, end)], rules)
    if answers is None:
        return None
    (answer,) = answers
    return answer if answer.meters else await _with_fleet_share(connection, answer, _Window(start, end, rules))


def judged_efficiencies(steps: Sequence[Performance]) -> list[float | None]:
    """The efficiency of each of some windows that follow each other, where it says something.

    It does not where there is little energy or there are few readings; nor where a counter, on either side, comes back
    from a silence: its first reading then has the energy of the whole silence.
    """
    before = [None, *steps[:-1]]
    return [
        step.efficiency
        if step.status in ("ok", "low_efficiency", "above_unity") and not _is_behind_silence(previous, step)
        else None
        for previous, step in zip(before, steps, strict=True)
    ]


def _is_behind_silence(previous: Performance | None, step: Performance) -> bool:
    counts = step.energy_mode != "interval" or any(share.energy_mode != "interval" for share in step.meters)
    return counts and (previous is None or previous.coverage < COVERED)


async def performances(
    connection: Connection, vehicle_id: str, windows: Sequence[tuple[datetime, datetime]], rules: Rules
) -> list[Performance] | None:
    """The same in each of some windows, which are in the order of time; without any share of the fleet's energy."""
    energy_mode = await find_mode(connection, VEHICLE, vehicle_id)
    if energy_mode is None:
        return None
    links = await _spans(connection, [vehicle_id], _Window(windows[0][0], windows[-1][1], rules))
    cut = [(window, _within(links, window)) for window in (_Window(*window, rules) for window in windows)]
    dc = await _measure_each(connection, VEHICLE, [({vehicle_id: energy_mode}, *one) for one in cut])
    ac = await _measure_each(connection, METER, [(_modes_of_meters(spans), window, spans) for window, spans in cut])
    return [
        _performance(vehicle_id, energy_mode, spans, of_vehicle, of_meters, window)
        for (window, spans), of_vehicle, of_meters in zip(cut, dc, ac, strict=True)
    ]


async def fleet(connection: Connection, start: datetime, end: datetime, rules: Rules, worst: int) -> FleetPerformance:
    """The fleet's energy in [start, end), with the `worst` vehicles: of those judged, the lowest efficiency first."""
    window = _Window(start, end, rules)
    summable = await find_summable(connection, start, end, rules.power_max_kw)
    if summable is not None:
        limits = (rules.low_efficiency, rules.min_ac_kwh, rules.min_coverage, rules.power_max_kw)
        known = await sum_fleet(connection, start, end, *limits, worst, summable)
        vehicles = await _modes_of(connection, VEHICLE, known.odd_vehicles)
        meters = await _modes_of(connection, METER, known.odd_meters)
    else:
        known = FleetSums()
        vehicles, meters = [await _modes(connection, kind) for kind in (VEHICLE, METER)]
    spans = await _spans(connection, list(vehicles), window)
    meters = {**meters, **_modes_of_meters(spans)}
    dc = await _measure(connection, VEHICLE, vehicles, spans, window)
    ac = await _measure(connection, METER, meters, spans, window)
    spans_of: dict[str, list[_Span]] = {vehicle_id: [] for vehicle_id in vehicles}
    for span in spans:
        spans_of[span.vehicle_id].append(span)
    answers = [
        _performance(vehicle_id, vehicles[vehicle_id], linked, dc, ac, window)
        for vehicle_id, linked in spans_of.items()
    ]
    return _fleet_performance(known, answers, dc, ac, window, worst)


async def _modes(connection: Connection, kind: Kind) -> _Modes:
    return dict(await connection.fetch(kind.query("list_modes")))


async def _modes_of(connection: Connection, kind: Kind, device_ids: Sequence[str]) -> _Modes:
    configured = dict(await connection.fetch(query("find_modes"), kind.name, device_ids)) if device_ids else {}
    return {device_id: configured.get(device_id, "interval") for device_id in device_ids}


async def _spans(connection: Connection, vehicle_ids: list[str], window: _Window) -> list[_Span]:
    if not vehicle_ids:
        return []
    rows = await connection.fetch(query("find_links_in_window"), vehicle_ids, window.start, window.end)
    return [_Span(**row) for row in rows]


def _within(spans: Sequence[_Span], window: _Window) -> list[_Span]:
    """The spans of one vehicle, cut to a window."""
    first = bisect_right(spans, window.start, key=attrgetter("linked_to"))
    behind = bisect_left(spans, window.end, key=attrgetter("linked_from"))
    return [
        replace(
            span,
            linked_from=max(span.linked_from, window.start),
            linked_to=min(span.linked_to, window.end),
        )
        for span in spans[first:behind]
    ]


def _modes_of_meters(spans: Iterable[_Span]) -> _Modes:
    return {span.meter_id: span.energy_mode for span in spans}


async def _measure(
    connection: Connection, kind: Kind, modes: _Modes, spans: Sequence[_Span], window: _Window
) -> _BySpan:
    """What devices of one kind come to, in each of their spans and outside of them, where they have readings."""
    (measured,) = await _measure_each(connection, kind, [(modes, window, spans)])
    return measured


async def _measure_each(
    connection: Connection, kind: Kind, asked: Sequence[tuple[_Modes, _Window, Sequence[_Span]]]
) -> list[dict[tuple[str, _Span | None], Total]]:
    """The same in each of some windows."""
    pieces: list[Piece] = []
    keys: list[tuple[int, str, _Span | None]] = []
    for number, (modes, window, spans) in enumerate(asked):
        spans_of: dict[str, list[_Span]] = {device_id: [] for device_id in modes}
        for span in spans:
            spans_of[_device_of(kind, span)].append(span)
        for device_id, own in spans_of.items():
            own.sort(key=lambda span: span.linked_from)
            for start, end, of in _cut(own, window):
                pieces.append(Piece(device_id, modes[device_id], start, end))
                keys.append((number, device_id, of))
    totals = await measure(connection, kind, pieces, asked[0][1].rules.power_max_kw)
    found: list[dict[tuple[str, _Span | None], Total]] = [{} for _ in asked]
    for (number, device_id, of), total in zip(keys, totals, strict=True):
        if total.samples:
            measured, key = found[number], (device_id, of)
            measured[key] = measured[key].plus(total) if key in measured else total
    return found


def _cut(spans: Sequence[_Span], window: _Window) -> Iterator[tuple[datetime, datetime, _Span | None]]:
    """The window cut into the spans of one device, which follow each other, and what is between them."""
    behind = window.start
    for span in spans:
        if behind < span.linked_from:
            yield behind, span.linked_from, None
        yield span.linked_from, span.linked_to, span
        behind = span.linked_to
    if behind < window.end:
        yield behind, window.end, None


def _device_of(kind: Kind, span: _Span) -> str:
    return span.vehicle_id if kind is VEHICLE else span.meter_id


def _performance(
    vehicle_id: str, energy_mode: EnergyMode, spans: list[_Span], dc: _BySpan, ac: _BySpan, window: _Window
) -> Performance:
    """Everything about one vehicle but its share of the fleet, from what was measured."""
    apart = [dc[vehicle_id, None]] if (vehicle_id, None) in dc else []
    linked = [dc[vehicle_id, span] for span in spans if (vehicle_id, span) in dc]
    metered = [ac[span.meter_id, span] for span in spans if (span.meter_id, span) in ac]
    ac_kwh, dc_kwh, apart_kwh = _kwh(metered), _kwh(linked if spans else apart), _kwh(apart)
    vehicle_coverage = _coverage(linked if spans else apart, window)
    meter_coverage = _coverage(metered, window)
    coverage = min(vehicle_coverage, meter_coverage) if spans else vehicle_coverage
    efficiency = round(dc_kwh / ac_kwh, DIGITS) if spans and ac_kwh else None
    status = _verdict(bool(spans), ac_kwh, efficiency, coverage, window.rules)
    samples = sum(measured.samples for measured in linked + apart)
    return Performance(
        vehicle_id=vehicle_id,
        start=window.start,
        end=window.end,
        ac_kwh=ac_kwh,
        dc_kwh=dc_kwh,
        loss_kwh=round(ac_kwh - dc_kwh, DIGITS) if efficiency is not None else None,
        efficiency=efficiency,
        avg_battery_temp=_average(sum(measured.battery_temp_sum for measured in linked + apart), samples),
        samples=samples,
        meter_samples=sum(measured.samples for measured in metered),
        coverage=coverage,
        vehicle_coverage=vehicle_coverage,
        meter_coverage=meter_coverage,
        energy_mode=energy_mode,
        meters=[_share(span, ac.get((span.meter_id, span))) for span in spans],
        flags=_flags(linked + apart + metered),
        status=status,
        reason=_reason(status, ac_kwh, dc_kwh, efficiency, coverage, window.rules),
        dc_kwh_unlinked=apart_kwh,
    )


def _verdict(linked: bool, ac_kwh: float, efficiency: float | None, coverage: float, rules: Rules) -> Verdict:
    if not linked:
        return "unlinked"
    if efficiency is None:
        return "no_ac_energy"
    if ac_kwh < rules.min_ac_kwh or coverage < rules.min_coverage:
        return "insufficient_data"
    if efficiency > 1:
        return "above_unity"
    return "low_efficiency" if efficiency < rules.low_efficiency else "ok"


def _reason(
    status: Verdict, ac_kwh: float, dc_kwh: float, efficiency: float | None, coverage: float, rules: Rules
) -> str:
    """The verdict in a sentence with its numbers."""
    ratio = f"{dc_kwh:.3f} kWh DC of {ac_kwh:.3f} kWh AC is an efficiency of {efficiency}"
    match status:
        case "unlinked":
            return f"The vehicle was linked with no meter in this window, in which it counted {dc_kwh:.3f} kWh DC."
        case "no_ac_energy":
            return f"Its meters counted no AC energy while linked; {dc_kwh:.3f} kWh DC came meanwhile."
        case "insufficient_data" if ac_kwh < rules.min_ac_kwh:
            return f"{ac_kwh:.3f} kWh AC is less than the {rules.min_ac_kwh:g} kWh that a verdict needs."
        case "insufficient_data":
            return f"Readings cover {coverage:.1%} of the window, less than the {rules.min_coverage:.0%} needed."
        case "above_unity":
            return f"{ratio}, more than 1: a meter missed energy, or an energy mode or a link is wrong."
        case "low_efficiency":
            return f"{ratio}, less than {rules.low_efficiency:g}."
        case "ok":
            return f"{ratio}, at least {rules.low_efficiency:g}."


async def _with_fleet_share(connection: Connection, answer: Performance, window: _Window) -> Performance:
    """The answer for an unlinked vehicle, with the part of the fleet's AC energy that falls to its DC energy."""
    whole = await fleet(connection, window.start, window.end, window.rules, worst=0)
    fleet_ac_kwh = round(whole.ac_kwh + whole.unlinked_ac_kwh, DIGITS)
    fleet_dc_kwh = round(whole.dc_kwh + whole.unlinked_dc_kwh, DIGITS)
    share = round(fleet_ac_kwh * answer.dc_kwh / fleet_dc_kwh, DIGITS) if fleet_dc_kwh else None
    return replace(answer, fleet_ac_share=share, fleet_ac_kwh=fleet_ac_kwh, fleet_dc_kwh=fleet_dc_kwh)


def _fleet_performance(
    known: FleetSums, answers: list[Performance], dc: _BySpan, ac: _BySpan, window: _Window, worst: int
) -> FleetPerformance:
    """What is known of most and the answers for the rest, together."""
    linked = [answer for answer in answers if answer.status != "unlinked"]
    judged = [*known.worst, *(_summary(answer) for answer in linked if answer.status in ("ok", "low_efficiency"))]
    judged.sort(key=lambda summary: (summary.efficiency, summary.vehicle_id))
    ac_kwh = round(known.ac_kwh + sum(answer.ac_kwh for answer in linked), DIGITS)
    dc_kwh = round(known.dc_kwh + sum(answer.dc_kwh for answer in linked), DIGITS)
    counts = Counter(known.verdicts) + Counter(answer.status for answer in answers)
    apart_ac_kwh = _kwh(measured for (_, span), measured in ac.items() if span is None)
    apart_dc_kwh = _kwh(measured for (_, span), measured in dc.items() if span is None)
    return FleetPerformance(
        start=window.start,
        end=window.end,
        ac_kwh=ac_kwh,
        dc_kwh=dc_kwh,
        loss_kwh=round(ac_kwh - dc_kwh, DIGITS) if ac_kwh else None,
        efficiency=round(dc_kwh / ac_kwh, DIGITS) if ac_kwh else None,
        vehicles=counts.total(),
        linked=counts.total() - counts["unlinked"],
        status_counts={status: counts[status] for status in get_args(Verdict)},
        worst=judged[:worst],
        unlinked_ac_kwh=round(known.unlinked_ac_kwh + apart_ac_kwh, DIGITS),
        unlinked_dc_kwh=round(known.unlinked_dc_kwh + apart_dc_kwh, DIGITS),
    )


def _summary(answer: Performance) -> VehicleSummary:
    return VehicleSummary(
        vehicle_id=answer.vehicle_id,
        ac_kwh=answer.ac_kwh,
        dc_kwh=answer.dc_kwh,
        loss_kwh=answer.loss_kwh,
        efficiency=answer.efficiency,
        coverage=answer.coverage,
        status=answer.status,
    )


def _share(span: _Span, measured: Total | None) -> MeterShare:
    return MeterShare(
        meter_id=span.meter_id,
        energy_mode=span.energy_mode,
        ac_kwh=_kwh([measured] if measured else []),
        samples=measured.samples if measured else 0,
        linked_from=span.linked_from,
        linked_to=span.linked_to,
    )


def _kwh(measured: Iterable[Total]) -> float:
    return round(sum(one.kwh for one in measured), DIGITS)


def _coverage(measured: list[Total], window: _Window) -> float:
    """Which share of the window is covered by readings."""
    covered_s = sum(one.covered_s for one in measured)
    return round(min(1.0, covered_s / (window.end - window.start).total_seconds()), DIGITS)


def _average(total: float, count: int) -> float | None:
    return round(total / count, DIGITS) if count else None


def _flags(measured: list[Total]) -> Flags:
    return Flags(
        impossible_steps=sum(one.impossible_steps for one in measured),
        resets=sum(one.resets for one in measured),
        dips=sum(one.dips for one in measured),
        glitches=sum(one.glitches for one in measured),
    )
