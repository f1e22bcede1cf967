import hashlib
import math
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from dev.charging import FAST_AC, SOCKET, WALLBOX, Vehicle
from dev.fleet import EPOCH, FAULTS_REPEAT_EVERY, FAULTY, Fault, Fleet, Publication, device_id

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
WINTER = datetime(2026, 1, 22, 9, 30, 12, 345_678, tzinfo=UTC)
AUTUMN = datetime(2026, 11, 20, 3, 14, 37, tzinfo=UTC)
SUMMER = datetime(2026, 7, 20, 12, tzinfo=UTC)
CLOCK_AHEAD_MAX_S = 300

HEALTHY_EFFICIENCY = {SOCKET.ac_max_kw: (0.76, 0.87), WALLBOX.ac_max_kw: (0.90, 0.94), FAST_AC.ac_max_kw: (0.83, 0.85)}
HONEST_STEP_KWH = 0.37


def readings_of(publications: Iterable[Publication]) -> list[tuple[str, bytes]]:
    """Every item that the daemon would count, by itself: (topic, its bytes)."""
    items: list[tuple[str, bytes]] = []
    for publication in publications:
        if publication.payload.startswith(b"["):
            elements = msgspec.json.decode(publication.payload, type=list[msgspec.Raw])
            items += [(publication.topic, bytes(element)) for element in elements]
        else:
            items.append((publication.topic, publication.payload))
    return items


def decoded(payload: bytes) -> dict[str, Any]:
    """The fields of a payload, numbers as numbers, the timestamp in seconds since 1970."""
    fields: dict[str, Any] = msgspec.json.decode(payload)
    for name in {"soc", "kwhDeliveredDc", "batteryTemp", "kwhConsumedAc", "voltage"} & fields.keys():
        fields[name] = float(fields[name])
    fields["timestamp"] = seconds(fields["timestamp"])
    return fields


def seconds(timestamp: str | int) -> float:
    if isinstance(timestamp, str):
        return datetime.fromisoformat(timestamp).timestamp()
    return timestamp / 1000 if timestamp > 1e11 else float(timestamp)


def sound_devices(fleet: Fleet) -> set[str]:
    broken = {Fault.GARBAGE, Fault.CLOCK_AHEAD}
    return {device.id for device in fleet.devices if fleet.faults().get(device.id) not in broken}


def day_of_a_fleet(vehicles: int, start: datetime, days: int = 1) -> dict[str, list[dict[str, Any]]]:
    """What the devices that can be believed send in a day, by device id, oldest first, each reading once."""
    fleet = Fleet(vehicles)
    by_device: defaultdict[str, dict[float, dict[str, Any]]] = defaultdict(dict)
    sound = sound_devices(fleet)
    for topic, payload in readings_of(fleet.backfill(start, start + days * DAY)):
        if (sender := topic.split("/")[1]) in sound:
            fields = decoded(payload)
            by_device[sender][fields["timestamp"]] = fields
    return {sender: [fields for _, fields in sorted(readings.items())] for sender, readings in by_device.items()}


def kwh(readings: list[dict[str, Any]]) -> float:
    return math.fsum(fields.get("kwhConsumedAc", 0.0) + fields.get("kwhDeliveredDc", 0.0) for fields in readings)


def sent_live_by(fault: Fault, vehicles: int = 10, start: datetime = AUTUMN) -> list[list[Publication]]:
    """A day of each device with this fault."""
    fleet = Fleet(vehicles)
    topics = [device.topic for device in fleet.devices if device.fault is fault]
    assert topics, f"no device has the fault {fault}"
    published = list(fleet.live(start, start + DAY))
    return [[publication for publication in published if publication.topic == topic] for topic in topics]


# Repeatable


def test_the_same_window_generated_again_has_the_same_bytes() -> None:
    assert list(Fleet(10).live(AUTUMN, AUTUMN + 2 * HOUR)) == list(Fleet(10).live(AUTUMN, AUTUMN + 2 * HOUR))
    assert list(Fleet(10).backfill(AUTUMN, AUTUMN + DAY)) == list(Fleet(10).backfill(AUTUMN, AUTUMN + DAY))


def test_another_process_generates_the_same_bytes() -> None:
    code = (
        "import hashlib; from datetime import *; from dev.fleet import Fleet\n"
        f"start = datetime.fromisoformat('{AUTUMN.isoformat()}')\n"
        "published = Fleet(10).backfill(start, start + timedelta(hours=12))\n"
        "print(hashlib.sha256(b''.join(p.payload for p in published)).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = b"".join(publication.payload for publication in Fleet(10).backfill(AUTUMN, AUTUMN + 12 * HOUR))
    assert hashlib.sha256(here).hexdigest() == elsewhere


def test_a_later_start_generates_the_rest_of_what_an_earlier_start_does() -> None:
    later = AUTUMN + timedelta(hours=7, minutes=11, seconds=3)
    rest = [p for p in Fleet(10).live(AUTUMN, AUTUMN + 9 * HOUR) if p.due >= later]
    assert rest == list(Fleet(10).live(later, AUTUMN + 9 * HOUR))


def test_a_fleet_that_looks_back_after_looking_ahead_says_the_same() -> None:
    fleet = Fleet(3)
    first = list(fleet.live(AUTUMN, AUTUMN + HOUR))
    list(fleet.backfill(AUTUMN + 3 * DAY, AUTUMN + 9 * DAY, per_message=600))
    assert list(fleet.live(AUTUMN, AUTUMN + HOUR)) == first


def test_a_larger_fleet_contains_the_smaller_one() -> None:
    small = readings_of(Fleet(9).live(AUTUMN, AUTUMN + HOUR))
    large = readings_of(Fleet(41).live(AUTUMN, AUTUMN + HOUR))
    assert not Counter(small) - Counter(large)


def test_seeds_share_no_device() -> None:
    ids = [{device.id for device in Fleet(5, seed).devices} for seed in (1, 2, 21)]
    assert not ids[0] & ids[1] | ids[0] & ids[2] | ids[1] & ids[2]
    assert device_id("vehicle", 1, 1) == "vehicle-0001"
    assert device_id("meter", 7, 12_345) == "meter-s7-12345"


def test_no_device_ever_sends_two_readings_with_one_timestamp_and_different_content() -> None:
    seen: dict[tuple[str, float], bytes] = {}
    for topic, payload in readings_of(Fleet(10).backfill(AUTUMN, AUTUMN + 3 * DAY)):
        if payload.endswith(b"}"):
            key = topic, seconds(msgspec.json.decode(payload)["timestamp"])
            assert seen.setdefault(key, payload) == payload


# Covered exactly once


def test_backfill_and_live_together_cover_every_reading_once() -> None:
    fleet = Fleet(10)
    array_due = next(p.due for p in sent_live_by(Fault.OFFLINE)[0] if p.payload.startswith(b"["))
    start, end = array_due - 6 * HOUR, array_due + 6 * HOUR
    whole = Counter(readings_of(fleet.backfill(start, end)))
    for before in (5 * HOUR, 61 * MINUTE, 20 * MINUTE, timedelta(microseconds=1), timedelta(0), -3 * HOUR):
        between = array_due - before
        parts = [*fleet.backfill(start, between), *fleet.live(between, end)]
        assert Counter(readings_of(parts)) == whole


def test_a_restart_inside_an_offline_hour_loses_nothing() -> None:
    array_due = next(p.due for p in sent_live_by(Fault.OFFLINE)[0] if p.payload.startswith(b"["))
    stop, start = array_due - 40 * MINUTE, array_due - 15 * MINUTE
    fleet, until = Fleet(10), array_due + HOUR
    runs = [*fleet.backfill(stop - DAY, stop), *fleet.backfill(start - DAY, start), *fleet.live(start, until)]
    assert set(readings_of(fleet.live(stop - DAY, until))) == set(readings_of(runs))


def test_every_device_has_one_reading_a_minute() -> None:
    start = AUTUMN.replace(hour=0, minute=0, second=0)  # no offline hour touches midnight
    fleet = Fleet(10)
    counted: Counter[str] = Counter()
    for publication in fleet.backfill(start, start + DAY):
        counted[publication.topic] += publication.readings
    twice = {device.topic for device in fleet.devices if device.fault is Fault.DUPLICATES}
    assert counted == {device.topic: 2880 if device.topic in twice else 1440 for device in fleet.devices}


def test_a_moment_belongs_to_the_window_that_begins_with_it() -> None:
    fleet = Fleet(1)
    moment = next(iter(fleet.live(AUTUMN, AUTUMN + HOUR))).due
    microsecond = timedelta(microseconds=1)
    for generate in (fleet.backfill, fleet.live):
        assert len(list(generate(moment, moment + microsecond))) == 1
        assert not list(generate(moment - microsecond, moment))


def test_readings_counts_the_items_of_each_payload() -> None:
    for publications in (Fleet(10).backfill(AUTUMN, AUTUMN + DAY, per_message=45), sent_live_by(Fault.OFFLINE)[0]):
        for publication in publications:
            assert publication.readings == len(readings_of([publication])) <= 60


def test_the_backfill_goes_through_time_and_not_through_devices() -> None:
    published = list(Fleet(10).backfill(AUTUMN, AUTUMN + DAY))
    hours = [(p.due - AUTUMN - timedelta(microseconds=1)) // HOUR for p in published]
    assert hours == sorted(hours)
    assert set(hours) == set(range(24))


def test_live_is_sorted_by_the_time_at_which_hardware_sends() -> None:
    due = [publication.due for publication in Fleet(10).live(AUTUMN, AUTUMN + DAY)]
    assert due == sorted(due)
    assert due[0] >= AUTUMN
    assert due[-1] < AUTUMN + DAY


def test_live_needs_no_end_in_sight() -> None:
    forever = datetime.max.replace(tzinfo=UTC)
    assert next(iter(Fleet(1).live(AUTUMN, forever))).due < AUTUMN + MINUTE


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(TypeError):
        next(Fleet(1).live(datetime(2026, 1, 1), AUTUMN))  # noqa: DTZ001 - that is the point


def test_an_empty_fleet_publishes_nothing() -> None:
    assert not list(Fleet(0).backfill(AUTUMN, AUTUMN + DAY))
    assert not list(Fleet(0).live(AUTUMN, AUTUMN + DAY))


def test_days_gone_by_are_not_kept_in_memory() -> None:
    vehicle = Vehicle(1, 1)
    for minute in range(0, 30 * 1440, 60):
        vehicle.cycle_at(minute)
    assert len(vehicle._cycles) <= 3


# Plausible


@pytest.fixture(scope="module", params=[WINTER, SUMMER], ids=["winter", "summer"])
def a_day(request: pytest.FixtureRequest) -> dict[str, list[dict[str, Any]]]:
    return day_of_a_fleet(40, request.param)


def test_values_stay_in_the_bands_of_their_kind(a_day: dict[str, list[dict[str, Any]]]) -> None:
    for fields in (fields for readings in a_day.values() for fields in readings):
        if "soc" in fields:
            assert 5 < fields["soc"] < 100
            assert -20 < fields["batteryTemp"] < 50
            assert 0 <= fields["kwhDeliveredDc"] < HONEST_STEP_KWH
        else:
            assert 207 < fields["voltage"] < 253  # EN 50160: 230 V, 10 % up or down
            assert 0 < fields["kwhConsumedAc"] < HONEST_STEP_KWH


def test_healthy_vehicles_are_as_efficient_as_measured_ones(a_day: dict[str, list[dict[str, Any]]]) -> None:
    fleet = Fleet(40)
    seen = Counter[float]()
    for vehicle, meter in fleet.pairs():
        if vehicle in a_day and meter in a_day and fleet.faults().get(vehicle) is not Fault.LEAKY_CHARGER:
            ac_max_kw = Vehicle(1, int(vehicle[-4:])).charger.ac_max_kw
            low, high = HEALTHY_EFFICIENCY[ac_max_kw]
            assert low <= kwh(a_day[vehicle]) / kwh(a_day[meter]) <= high, vehicle
            assert kwh(a_day[meter]) > 1.0
            seen[ac_max_kw] += 1
    assert seen.keys() == HEALTHY_EFFICIENCY.keys()


def test_a_leaky_charger_loses_a_third(a_day: dict[str, list[dict[str, Any]]]) -> None:
    fleet = Fleet(40)
    leaky = [(v, meter) for v, meter in fleet.pairs() if fleet.faults().get(v) is Fault.LEAKY_CHARGER]
    assert leaky
    for vehicle, meter in leaky:
        assert 0.6 < kwh(a_day[vehicle]) / kwh(a_day[meter]) < 0.7


def test_no_vehicle_gets_more_than_its_meter_counts(a_day: dict[str, list[dict[str, Any]]]) -> None:
    for vehicle, meter in Fleet(40).pairs():
        if vehicle in a_day and meter in a_day:
            ac_kwh = {fields["timestamp"] // 60: fields["kwhConsumedAc"] for fields in a_day[meter]}
            for fields in a_day[vehicle]:
                assert fields["kwhDeliveredDc"] < ac_kwh.get(fields["timestamp"] // 60, math.inf)


def test_charging_tapers_above_80_percent(a_day: dict[str, list[dict[str, Any]]]) -> None:
    by_soc = defaultdict(list)
    for vehicle, readings in a_day.items():
        if vehicle.startswith("vehicle") and Vehicle(1, int(vehicle[-4:])).charger.ac_max_kw == WALLBOX.ac_max_kw:
            for fields in readings:
                if fields["kwhDeliveredDc"] and fields["batteryTemp"] > 8:
                    by_soc[int(fields["soc"] // 5 * 5)].append(fields["kwhDeliveredDc"])
    at = {soc: statistics.median(kwhs) for soc, kwhs in by_soc.items()}
    assert at[70] == pytest.approx(at[45], rel=0.1)
    assert at[85] < 0.9 * at[70]
    assert at[90] < 0.6 * at[85]


def test_the_battery_gets_next_to_nothing_while_it_is_cold() -> None:
    cold_minutes = 0
    winter = day_of_a_fleet(40, WINTER)
    for vehicle, meter in Fleet(40).pairs():
        if vehicle in winter and meter in winter:
            ac_kwh = {fields["timestamp"] // 60: fields["kwhConsumedAc"] for fields in winter[meter]}
            for fields in winter[vehicle]:
                if fields["kwhDeliveredDc"] and fields["batteryTemp"] < 6.9:
                    assert fields["kwhDeliveredDc"] / ac_kwh[fields["timestamp"] // 60] < 0.2
                    cold_minutes += 1
    assert cold_minutes > 10


def test_soc_follows_the_energy_and_nothing_jumps() -> None:
    for device, readings in day_of_a_fleet(10, AUTUMN, days=3).items():
        for before, after in pairwise(readings):
            if device.startswith("vehicle") and after["timestamp"] - before["timestamp"] < 61:
                assert abs(after["soc"] - before["soc"]) < 1.0
                assert abs(after["batteryTemp"] - before["batteryTemp"]) <= 1.2
                assert (after["soc"] >= before["soc"]) or not after["kwhDeliveredDc"]


def test_a_battery_is_warmer_after_charging_than_the_same_minutes_without() -> None:
    cycle = Vehicle(1, 6).cycle_at(int((SUMMER - EPOCH) / MINUTE))
    charging = [i for i, kw in enumerate(cycle.dc_kw) if kw > 0]
    assert cycle.battery_temp_c[charging[-1]] > cycle.battery_temp_c[charging[0]] + 2.0


def test_the_voltage_sags_under_load() -> None:
    vehicle = Vehicle(1, 6)
    assert vehicle.voltage_v(22.0, 0) < vehicle.voltage_v(0.0, 0) - 3.0


# Faults


def test_a_fleet_of_ten_has_every_fault_and_a_fleet_of_200_only_a_few_of_each() -> None:
    assert set(Fleet(10).faults().values()) == set(Fault)
    counted = Counter(Fleet(200).faults().values())
    assert counted.keys() == set(Fault)
    assert max(counted.values()) <= 10
    assert sum(counted.values()) < 0.1 * 400


def test_every_fault_is_told_and_no_other() -> None:
    fleet = Fleet(FAULTS_REPEAT_EVERY)
    told = {device: fault for device, fault in fleet.faults().items() if fault is not Fault.UNLINKED}
    assert told == {device_id(kind, 1, number): fault for number, (kind, fault) in FAULTY.items()}


@pytest.mark.parametrize("vehicles", [3, 5, 10, 43, 200])
def test_one_vehicle_sends_without_being_linked(vehicles: int) -> None:
    fleet = Fleet(vehicles)
    (unlinked,) = (device for device, fault in fleet.faults().items() if fault is Fault.UNLINKED)
    assert len(fleet.pairs()) == vehicles - 1
    assert unlinked not in dict(fleet.pairs())
    assert any(unlinked in p.topic for p in fleet.live(AUTUMN, AUTUMN + MINUTE))


@pytest.mark.parametrize("vehicles", [1, 3, 10, 200])
def test_the_healthy_example_is_linked_and_has_no_fault(vehicles: int) -> None:
    fleet = Fleet(vehicles)
    healthy = fleet.healthy()
    assert healthy is not None
    assert {healthy, dict(fleet.pairs())[healthy]}.isdisjoint(fleet.faults())


def test_an_offline_device_is_silent_for_an_hour_and_then_sends_what_it_kept() -> None:
    for published in sent_live_by(Fault.OFFLINE):
        arrays = [p for p in published if p.payload.startswith(b"[")]
        assert 1 <= len(arrays) <= 2  # the day of this test is not a UTC day
        for array in arrays:
            times = [decoded(payload)["timestamp"] for _, payload in readings_of([array])]
            assert len(times) == 60
            assert times == sorted(times)
            since = array.due - HOUR
            assert not [p for p in published if since <= p.due < array.due]
            assert [p.due for p in published].count(array.due) == 2  # the array and the reading of that minute


def test_a_clock_that_is_ahead_is_an_hour_ahead_for_some_hours() -> None:
    for published in sent_live_by(Fault.CLOCK_AHEAD):
        ahead_s = [decoded(p.payload)["timestamp"] - p.due.timestamp() for p in published]
        wrong = [ahead for ahead in ahead_s if ahead > CLOCK_AHEAD_MAX_S]
        assert all(3600 <= ahead < 3700 for ahead in wrong)
        assert 60 <= len(wrong) <= 720
        assert all(abs(ahead) < 0.001 for ahead in ahead_s if ahead not in wrong)


def test_a_duplicating_device_sends_every_message_twice() -> None:
    for published in sent_live_by(Fault.DUPLICATES):
        assert published[::2] == published[1::2]


def test_garbage_is_of_every_sort_and_rare() -> None:
    for published in sent_live_by(Fault.GARBAGE):
        sorts = Counter(map(sort_of_garbage, published))
        assert sorts.keys() == {"honest", "truncated", "out of range", "field missing", "wrong type"}
        assert sorts["honest"] > 0.9 * sorts.total()


def sort_of_garbage(publication: Publication) -> str:
    try:
        fields = msgspec.json.decode(publication.payload)
    except msgspec.DecodeError:
        return "truncated"
    if not {"kwhDeliveredDc", "kwhConsumedAc"} & fields.keys():
        return "field missing"
    if "n/a" in fields.values():
        return "wrong type"
    return "out of range" if 6553.5 in fields.values() else "honest"


def test_a_truncated_reading_spoils_no_array() -> None:
    for publication in Fleet(10).backfill(AUTUMN, AUTUMN + DAY):
        if publication.readings > 1:
            msgspec.json.decode(publication.payload)


# Payload forms


def test_devices_use_the_forms_that_the_contract_allows() -> None:
    payloads = [
        payload for _, payload in readings_of(Fleet(12).backfill(AUTUMN, AUTUMN + HOUR)) if payload[-1:] == b"}"
    ]
    forms = [msgspec.json.decode(payload) for payload in payloads]
    timestamps = [fields["timestamp"] for fields in forms]
    assert statistics.mean(isinstance(t, str) and t.endswith("Z") for t in timestamps) > 0.5
    assert any(isinstance(t, str) and t.endswith("+00:00") for t in timestamps)
    assert any(isinstance(t, int) and t < 1e10 for t in timestamps)
    assert any(isinstance(t, int) and t > 1e12 for t in timestamps)
    assert any(isinstance(fields.get("voltage"), str) for fields in forms)
    assert any(fields.keys().isdisjoint({"vehicleId", "meterId"}) for fields in forms)
    assert {"type", "firmware", "rssi", "hw"} <= {name for fields in forms for name in fields}


def test_every_timestamp_is_the_moment_of_its_device() -> None:
    fleet = Fleet(12)
    phases_ms = {device.topic: device.phase_ms for device in fleet.devices if device.fault is not Fault.CLOCK_AHEAD}
    for publication in fleet.live(AUTUMN, AUTUMN + HOUR):
        if publication.topic in phases_ms and publication.payload.endswith(b"}"):
            at_s = seconds(msgspec.json.decode(publication.payload)["timestamp"])
            assert at_s * 1000 % 60_000 == pytest.approx(phases_ms[publication.topic], abs=1)


def test_values_are_rounded_as_firmware_does() -> None:
    decimals = {"soc": 2, "kwhDeliveredDc": 6, "batteryTemp": 1, "kwhConsumedAc": 6, "voltage": 1}
    for readings in day_of_a_fleet(3, AUTUMN).values():
        for fields in readings:
            assert all(
                round(fields[name], digits) == fields[name] for name, digits in decimals.items() if name in fields
            )
