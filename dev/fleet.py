"""The simulated fleet: vehicles, each with its meter, and what they publish.

Rule 1: a reading is a pure function of (seed, device, UTC minute). Any window generated again, from any start, in any
process, has the same bytes; so a second run sends duplicates of what is stored and never a conflict.

Rule 2: `backfill` and `live` share one notion of when a reading goes out (`due`), and both take what is due in
[start, end). So windows that adjoin cover every reading exactly once, whichever way each of them is generated: what an
offline device still keeps at the end of one window is in the array that it sends in the next.

Rule 3: seeds do not share device ids, so that two fleets in one database never contradict each other.

How vehicles and chargers behave is in dev/charging.py; faults and payload forms are listed in docs/fleet.md.
"""

import random
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache

from msgspec import Struct

from dev.charging import MINUTES_A_DAY, Vehicle, noise_index, noise_table

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MS = timedelta(milliseconds=1)
MS_A_MINUTE = 60_000

FAULTS_REPEAT_EVERY = 40
OFFLINE_MIN = 60
CLOCK_AHEAD_MIN = 360
CLOCK_AHEAD_MS = 3_617_000
"""An hour and 17 s: were it an hour sharp, a wrong timestamp would later meet the right one of the same device."""
GARBAGE_ONE_IN = 32


class Fault(StrEnum):
    """What is wrong with a device."""

    LEAKY_CHARGER = "leaky_charger"
    OFFLINE = "offline"
    CLOCK_AHEAD = "clock_ahead"
    DUPLICATES = "duplicates"
    GARBAGE = "garbage"
    UNLINKED = "unlinked"


FAULTY = {
    2: ("vehicle", Fault.LEAKY_CHARGER),
    4: ("vehicle", Fault.OFFLINE),
    5: ("vehicle", Fault.CLOCK_AHEAD),
    6: ("meter", Fault.DUPLICATES),
    7: ("vehicle", Fault.GARBAGE),
    8: ("meter", Fault.OFFLINE),
    9: ("meter", Fault.GARBAGE),
}
"""Which devices are faulty, by number modulo `FAULTS_REPEAT_EVERY`: it must not depend on the size of the fleet."""


class Publication(Struct, frozen=True):
    """One MQTT message: `readings` items for the daemon to account for, sent by the hardware at `due` (UTC)."""

    topic: str
    payload: bytes
    readings: int
    due: datetime


class Firmware(Struct, frozen=True):
    """The form that a device model gives to its payloads; the contract allows all of these."""

    timestamp: str = "rfc3339"
    with_id: bool = True
    with_type: bool = False
    numbers_as_strings: bool = False
    extra: str = ""
    with_rssi: bool = False


PLAIN = Firmware()
FIRMWARES = {
    1: Firmware(with_type=True, extra=',"firmware":"4.2.1"', with_rssi=True),
    3: Firmware(timestamp="unix_s"),
    5: Firmware(with_id=False),
    7: Firmware(numbers_as_strings=True),
    9: Firmware(timestamp="unix_ms", extra=',"hw":{"model":"AC011K","rev":3}'),
    10: Firmware(timestamp="rfc3339_offset", with_id=False, with_type=True),
}
"""By number modulo 12, counted from elsewhere for meters; the others are `PLAIN`."""


class Device:
    """One sender: its topic, its moment in the minute, its payload form, its fault."""

    def __init__(self, kind: str, vehicle: Vehicle, fault: Fault | None) -> None:
        seed, number = vehicle.seed, vehicle.number
        self.kind = kind
        self.vehicle = vehicle
        self.fault = fault
        self.id = device_id(kind, seed, number)
        self.topic = f"{kind}s/{self.id}/reading"
        self.key = f"{seed}/{kind}/{number}"
        self.firmware = FIRMWARES.get((number if kind == "vehicle" else number + 4) % 12, PLAIN)
        self.phase_ms = random.Random(self.key).randrange(MS_A_MINUTE)  # noqa: S311 - repeatable is the point
        if self.firmware.timestamp == "unix_s":
            self.phase_ms -= self.phase_ms % 1000
        self._head = self._fixed_head()
        self._quote = '"' if self.firmware.numbers_as_strings else ""
        self._noise = noise_table(seed)

    def _fixed_head(self) -> str:
        type_ = f'"type":"{self.kind}",' if self.firmware.with_type else ""
        return "{" + type_ + (f'"{self.kind}Id":"{self.id}",' if self.firmware.with_id else "")

    def text(self, minute: int) -> str:
        """The payload of the minute's reading, as the firmware writes it."""
        return self._broken(minute) if self.fault is Fault.GARBAGE else self._honest(minute)

    def _honest(self, minute: int) -> str:
        values = self._vehicle_values(minute) if self.kind == "vehicle" else self._meter_values(minute)
        return f'{self._head}{values},"timestamp":{self._timestamp(minute)}{self._tail(minute)}}}'

    def _vehicle_values(self, minute: int) -> str:
        cycle, q = self.vehicle.cycle_at(minute), self._quote
        i = minute - cycle.start_minute
        return (
            f'"soc":{q}{cycle.soc_pct[i]:.2f}{q},"kwhDeliveredDc":{q}{cycle.dc_kw[i] / 60.0:.6f}{q},'
            f'"batteryTemp":{q}{cycle.battery_temp_c[i]:.1f}{q}'
        )

    def _meter_values(self, minute: int) -> str:
        q = self._quote
        ac_kw = self.vehicle.metered_kw(self.vehicle.cycle_at(minute), minute)
        voltage_v = self.vehicle.voltage_v(ac_kw, minute)
        return f'"kwhConsumedAc":{q}{ac_kw / 60.0:.6f}{q},"voltage":{q}{voltage_v:.1f}{q}'

    def _timestamp(self, minute: int) -> str:
        ms = minute * MS_A_MINUTE + self.phase_ms
        if self.fault is Fault.CLOCK_AHEAD and self._in_daily_span(minute, CLOCK_AHEAD_MIN):
            ms += CLOCK_AHEAD_MS
        match self.firmware.timestamp:
            case "unix_s":
                return str(ms // 1000)
            case "unix_ms":
                return str(ms)
            case "rfc3339_offset":
                return f'"{_rfc3339(ms)}+00:00"'
            case _:
                return f'"{_rfc3339(ms)}Z"'

    def _tail(self, minute: int) -> str:
        if not self.firmware.with_rssi:
            return self.firmware.extra
        return f'{self.firmware.extra},"rssi":{-67 + round(4 * self._noise[noise_index(self.vehicle.number, minute)])}'

    def _broken(self, minute: int) -> str:
        """Now and then something that no firmware should send, in turn of each sort; otherwise the honest payload."""
        honest = self._honest(minute)
        draw = int(abs(self._noise[noise_index(self.vehicle.number, minute)]) * 1e6)
        if draw % GARBAGE_ONE_IN:
            return honest
        return GARBAGE[draw // GARBAGE_ONE_IN % len(GARBAGE)](honest)

    def sent_with(self, minute: int) -> Iterable[int]:
        """The minutes whose readings go out at the device's moment in this minute, oldest first."""
        if self.fault is not Fault.OFFLINE:
            return (minute,)
        if self._in_daily_span(minute, OFFLINE_MIN):
            return ()
        kept = OFFLINE_MIN if self._in_daily_span(minute - 1, OFFLINE_MIN) else 0
        return range(minute - kept, minute + 1)

    def _in_daily_span(self, minute: int, length_min: int) -> bool:
        """Whether the minute is in the stretch of this length that is drawn for each UTC day of the device."""
        day, of_day = divmod(minute, MINUTES_A_DAY)
        first = _daily_draw(self.key, day, MINUTES_A_DAY - length_min)
        return first <= of_day < first + length_min


@lru_cache(maxsize=1024)
def _daily_draw(key: str, day: int, below: int) -> int:
    # Never 0: spans of two days in a row must not touch, or the first would end inside the second.
    return random.Random(f"{key}/{day}").randrange(1, below)  # noqa: S311 - repeatable is the point


@lru_cache(maxsize=8)
def _date_text(day: int) -> str:
    return date.fromordinal(EPOCH.toordinal() + day).isoformat()


_MINUTE_TEXTS = tuple(f"T{minute // 60:02d}:{minute % 60:02d}:" for minute in range(MINUTES_A_DAY))


def _rfc3339(ms: int) -> str:
    minute, of_minute_ms = divmod(ms, MS_A_MINUTE)
    day, of_day = divmod(minute, MINUTES_A_DAY)
    return f"{_date_text(day)}{_MINUTE_TEXTS[of_day]}{of_minute_ms // 1000:02d}.{of_minute_ms % 1000:03d}"


def _truncated(text: str) -> str:
    return text[: len(text) * 2 // 3]


def _out_of_range(text: str) -> str:
    """A sensor that is not there: all bits set, by the scale of the field."""
    return re.sub(r'"(soc|voltage)":"?[-\d.]+"?', r'"\1":6553.5', text)


def _field_missing(text: str) -> str:
    return re.sub(r'"kwh\w+":"?[-\d.]+"?,', "", text)


def _wrong_type(text: str) -> str:
    return re.sub(r'"(batteryTemp|voltage)":"?[-\d.]+"?', r'"\1":"n/a"', text)


GARBAGE = (_truncated, _out_of_range, _field_missing, _wrong_type)


def device_id(kind: str, seed: int, number: int) -> str:
    """The first seed has the plain names; every other seed has its own."""
    return f"{kind}-{number:04d}" if seed == 1 else f"{kind}-s{seed}-{number:04d}"


class Fleet:
    """Vehicles and their meters, one reading a minute each; see the rules at the top."""

    def __init__(self, vehicles: int, seed: int = 1) -> None:
        self.devices: list[Device] = []
        for number in range(1, vehicles + 1):
            self.devices += _pair(seed, number)
        self._pairs = {self.devices[i].id: self.devices[i + 1].id for i in range(0, len(self.devices), 2)}
        self._faults = {device.id: device.fault for device in self.devices if device.fault}
        self._unlinked = self._last_sound_vehicle() if vehicles >= 3 else None

    def pairs(self) -> list[tuple[str, str]]:
        """Which vehicle charges at which meter: (vehicle id, meter id); without the unlinked one."""
        return [(vehicle, meter) for vehicle, meter in self._pairs.items() if vehicle != self._unlinked]

    def faults(self) -> dict[str, Fault]:
        """Device id to what is wrong with it; a leaky charger is named by the vehicle that charges at it."""
        return self._faults | ({self._unlinked: Fault.UNLINKED} if self._unlinked else {})

    def healthy(self) -> str | None:
        """A vehicle with nothing wrong, its meter included."""
        faults = self.faults()
        return next((v for v, meter in self.pairs() if v not in faults and meter not in faults), None)

    def _last_sound_vehicle(self) -> str:
        sound = (v for v, meter in reversed(self._pairs.items()) if v not in self._faults and meter not in self._faults)
        return next(sound)

    def backfill(self, start: datetime, end: datetime, per_message: int = 60) -> Iterator[Publication]:
        """What is due in [start, end), in arrays of up to `per_message` readings, all devices side by side in time."""
        start_ms, end_ms = _whole_ms(start), _whole_ms(end)
        for chunk_ms in range(start_ms, end_ms, per_message * MS_A_MINUTE):
            chunk_end_ms = min(end_ms, chunk_ms + per_message * MS_A_MINUTE)
            for device in self.devices:
                minutes = range(_first_minute(device, chunk_ms), _first_minute(device, chunk_end_ms))
                yield from _in_arrays(device, minutes, per_message)

    def live(self, start: datetime, end: datetime) -> Iterator[Publication]:
        """What is due in [start, end), one by one, sorted by `due`; lazy, so `end` may be years away."""
        start_ms, end_ms = _whole_ms(start), _whole_ms(end)
        by_phase = sorted(self.devices, key=lambda device: device.phase_ms)
        for minute in range(start_ms // MS_A_MINUTE, -(-end_ms // MS_A_MINUTE)):
            for device in by_phase:
                if start_ms <= minute * MS_A_MINUTE + device.phase_ms < end_ms:
                    yield from _sent_live(device, minute)


def _pair(seed: int, number: int) -> tuple[Device, Device]:
    kind, fault = FAULTY.get(number % FAULTS_REPEAT_EVERY, ("", None))
    leak_share = 0.3 if fault is Fault.LEAKY_CHARGER else 0.0
    vehicle = Vehicle(seed, number, leak_share)
    return (
        Device("vehicle", vehicle, fault if kind == "vehicle" else None),
        Device("meter", vehicle, fault if kind == "meter" else None),
    )


def _whole_ms(when: datetime) -> int:
    """Milliseconds since 1970, rounded up: an instant in whole ms is in [start, end) just when it is in the rounded."""
    return -((EPOCH - when) // MS)


def _first_minute(device: Device, from_ms: int) -> int:
    """The first minute in which the device's moment is not before `from_ms`."""
    return -((device.phase_ms - from_ms) // MS_A_MINUTE)


def _due(device: Device, minute: int) -> datetime:
    return EPOCH + (minute * MS_A_MINUTE + device.phase_ms) * MS


def _in_arrays(device: Device, minutes: range, per_message: int) -> Iterator[Publication]:
    """Arrays of the readings that go out in these minutes. A truncated one would spoil its array, so it goes alone."""
    if not minutes:
        return
    due = _due(device, minutes[-1])
    texts = [device.text(kept) for minute in minutes for kept in device.sent_with(minute)]
    whole = [text for text in texts if text[-1] == "}"]
    for first in range(0, len(whole), per_message):
        yield from _copies(device, _array(device, whole[first : first + per_message], due))
    for text in texts:
        if text[-1] != "}":
            yield Publication(device.topic, text.encode(), 1, due)


def _sent_live(device: Device, minute: int) -> Iterator[Publication]:
    due = _due(device, minute)
    *kept, now = [device.text(sent) for sent in device.sent_with(minute)] or [""]
    if kept:
        yield _array(device, kept, due)
    if now:
        yield from _copies(device, Publication(device.topic, now.encode(), 1, due))


def _array(device: Device, texts: list[str], due: datetime) -> Publication:
    return Publication(device.topic, f"[{','.join(texts)}]".encode(), len(texts), due)


def _copies(device: Device, publication: Publication) -> Iterator[Publication]:
    yield publication
    if device.fault is Fault.DUPLICATES:
        yield publication
