"""How a vehicle, its charger and the weather behave, minute by minute.

Rule: nothing here looks at a clock or keeps a state that matters. What happens in a minute follows from the seed, the
vehicle's number and the minute alone (minutes are counted from 1970-01-01T00:00Z), so any window can be computed again
and comes out the same. What is kept is a cache.

A vehicle's life is a chain of cycles, one a day: plug in, charge, unplug, drive out, stand, drive back, plug in. Every
cycle begins with a state that is drawn and not computed (state of charge, temperature), and the drive back ends in the
state that the next cycle draws. So a cycle needs no knowledge of the ones before it, and yet nothing jumps.

The formulas and where they come from are in docs/fleet.md.
"""

import math
import random
from array import array
from functools import lru_cache

from msgspec import Struct
from msgspec.structs import replace

MINUTES_A_DAY = 1440
NOISE_SIZE = 1 << 14

TAPER_FROM_SOC_PCT = 80.0
TAPER_WIDTH_PCT = 6.5
"""Above `TAPER_FROM_SOC_PCT` the cells accept e times less for each so many per cent."""
ACCEPTED_C_RATE = 0.35
"""What the cells accept at `TAPER_FROM_SOC_PCT`, in battery capacities an hour."""

COLD_BELOW_C = 7.0
COLD_C_RATE = 0.01
"""Below `COLD_BELOW_C` lithium would plate: the cells get next to nothing until the heater has warmed them."""
HEATER_KW = 4.0
HEATING_BELOW_C = 15.0
HEATING_KW_PER_K = 0.006
COOLING_ABOVE_C = 35.0
COOLING_KW_PER_K = 0.015

HEAT_KWH_PER_K_AND_KWH = 0.0017
"""6 kg of pack for each kWh of capacity, 1.0 kJ/(kg K)."""
HEAT_OF_CURRENT = 0.03
"""Share of the battery's power, in or out, that stays in it as heat."""
RELAXATION_MIN = 480.0
"""Time constant of the pack against the air around it."""
DRIVE_KW = 14.0

NOMINAL_V = 230.0


class ChargerKind(Struct, frozen=True):
    """A way to charge: the charger's limits and losses, and how vehicles that use it live.

    Loss in kW at a battery-side power of p kW: fixed + linear * p + ohmic * p**2.
    """

    ac_max_kw: float
    phases: int
    source_ohm: float
    fixed_kw: tuple[float, float]
    linear: float
    ohmic_per_kw: float
    battery_kwh: tuple[float, float]
    arrival_soc_pct: tuple[float, float]
    target_soc_pct: tuple[float, float]
    usual_plug_min: tuple[int, int]
    plugged_min: tuple[int, int]
    delay_min: tuple[int, int]


SOCKET = ChargerKind(
    ac_max_kw=2.3,
    phases=1,
    source_ohm=0.30,
    fixed_kw=(0.20, 0.40),
    linear=0.035,
    ohmic_per_kw=0.003,
    battery_kwh=(30.0, 40.0),
    arrival_soc_pct=(40.0, 58.0),
    target_soc_pct=(78.0, 90.0),
    usual_plug_min=(17 * 60, 20 * 60),
    plugged_min=(720, 800),
    delay_min=(0, 0),
)
WALLBOX = ChargerKind(
    ac_max_kw=11.0,
    phases=3,
    source_ohm=0.20,
    fixed_kw=(0.12, 0.24),
    linear=0.027,
    ohmic_per_kw=0.0024,
    battery_kwh=(50.0, 80.0),
    arrival_soc_pct=(25.0, 55.0),
    target_soc_pct=(80.0, 96.0),
    usual_plug_min=(16 * 60, 20 * 60),
    plugged_min=(600, 760),
    delay_min=(0, 300),
)
WALLBOX_AT_WORK = replace(WALLBOX, usual_plug_min=(7 * 60, 10 * 60), plugged_min=(480, 540), delay_min=(0, 0))
FAST_AC = ChargerKind(
    ac_max_kw=22.0,
    phases=3,
    source_ohm=0.15,
    fixed_kw=(0.35, 0.45),
    linear=0.06,
    ohmic_per_kw=0.0058,
    battery_kwh=(44.0, 56.0),
    arrival_soc_pct=(15.0, 35.0),
    target_soc_pct=(80.0, 88.0),
    usual_plug_min=(8 * 60, 18 * 60),
    plugged_min=(180, 300),
    delay_min=(0, 0),
)

CHARGER_OF_DIGIT = {3: SOCKET, 4: WALLBOX_AT_WORK, 6: FAST_AC, 7: WALLBOX_AT_WORK, 8: SOCKET}
"""By the last digit of a vehicle's number; the others have a `WALLBOX`."""


class Plan(Struct, frozen=True):
    """What is drawn for one cycle: when it begins, how the vehicle arrives, and what it is told to do."""

    plug_minute: int
    plugged_min: int
    arrival_soc_pct: float
    target_soc_pct: float
    arrival_temp_c: float


class Cycle(Struct, frozen=True):
    """What happened from one plug-in to the next: one element a minute, the first at `start_minute`."""

    start_minute: int
    end_minute: int
    soc_pct: "array[float]"
    battery_temp_c: "array[float]"
    dc_kw: "array[float]"
    ac_kw: "array[float]"


@lru_cache(maxsize=8)
def noise_table(seed: int) -> tuple[float, ...]:
    """Normally distributed numbers, drawn once: a look-up costs a thirtieth of a fresh generator."""
    draw = random.Random(f"{seed}/noise")  # noqa: S311 - repeatable is the point
    return tuple(draw.gauss(0.0, 1.0) for _ in range(NOISE_SIZE))


def noise_index(number: int, minute: int) -> int:
    """Where a device's noise of a minute is in the table; odd factors, so that it repeats only after 11 days."""
    return (minute * 7919 + number * 104_729) & (NOISE_SIZE - 1)


@lru_cache(maxsize=64)
def _weather_k(seed: int, day: int) -> float:
    """How much warmer than the season the midnight is at which `day` begins."""
    return random.Random(f"{seed}/weather/{day}").uniform(-2.5, 2.5)  # noqa: S311 - repeatable is the point


@lru_cache(maxsize=16)
def ambient_of_day_c(seed: int, day: int) -> tuple[float, ...]:
    """Air temperature of each minute of a UTC day: season, time of day (coldest at 4, warmest at 16) and weather."""
    first_k, last_k = _weather_k(seed, day), _weather_k(seed, day + 1)
    temps_c = []
    for minute in range(MINUTES_A_DAY):
        of_day = minute / MINUTES_A_DAY
        season_c = 11.0 - 8.0 * math.cos(math.tau * (day + of_day - 20) / 365.25)
        temps_c.append(season_c - 4.0 * math.cos(math.tau * (of_day - 1 / 6)) + first_k + (last_k - first_k) * of_day)
    return tuple(temps_c)


def _ambient_c(seed: int, start_minute: int, end_minute: int) -> list[float]:
    first_day = start_minute // MINUTES_A_DAY
    temps_c: list[float] = []
    for day in range(first_day, (end_minute - 1) // MINUTES_A_DAY + 1):
        temps_c += ambient_of_day_c(seed, day)
    skipped = start_minute - first_day * MINUTES_A_DAY
    return temps_c[skipped : skipped + end_minute - start_minute]


GRID_V = tuple(
    NOMINAL_V
    + 3.0 * math.sin(math.tau * minute / MINUTES_A_DAY)
    + 1.5 * math.cos(math.tau * 2 * minute / MINUTES_A_DAY)
    for minute in range(MINUTES_A_DAY)
)
"""The grid's voltage by minute of the UTC day, before a site adds its own: lowest at 18:00."""


class Vehicle:
    """A vehicle and the charger it uses. `leak_share` of what the meter counts never reaches the vehicle."""

    def __init__(self, seed: int, number: int, leak_share: float = 0.0) -> None:
        self.seed = seed
        self.number = number
        self.leak_share = leak_share
        self.charger = CHARGER_OF_DIGIT.get(number % 10, WALLBOX)
        draw = random.Random(f"{seed}/vehicle/{number}")  # noqa: S311 - repeatable is the point
        self.battery_kwh = draw.uniform(*self.charger.battery_kwh)
        self.fixed_kw = draw.uniform(*self.charger.fixed_kw)
        self.usual_plug_min = draw.randint(*self.charger.usual_plug_min)
        self.delay_min = draw.randint(*self.charger.delay_min)  # waits for the night tariff
        self.standby_kw = draw.uniform(0.002, 0.005)
        self.site_v = draw.uniform(-2.0, 2.0)
        self.noise = noise_table(seed)
        self._cycles: dict[int, Cycle] = {}

    def cycle_at(self, minute: int) -> Cycle:
        """The cycle that covers the minute, simulated at most once while it is in use."""
        for cycle in self._cycles.values():
            if cycle.start_minute <= minute < cycle.end_minute:
                return cycle
        index = (minute - self.usual_plug_min) // MINUTES_A_DAY
        if minute < self.plan(index).plug_minute:
            index -= 1
        if len(self._cycles) >= 3:  # today's, yesterday's, and one for who looks back
            del self._cycles[next(iter(self._cycles))]
        cycle = self._cycles[index] = self._simulate(index)
        return cycle

    def plan(self, index: int) -> Plan:
        """What is drawn for the cycle that begins on UTC day `index`."""
        draw = random.Random(f"{self.seed}/{self.number}/{index}")  # noqa: S311 - repeatable is the point
        plug_minute = index * MINUTES_A_DAY + self.usual_plug_min + draw.randint(0, 45)
        day, of_day = divmod(plug_minute, MINUTES_A_DAY)
        return Plan(
            plug_minute=plug_minute,
            plugged_min=draw.randint(*self.charger.plugged_min),
            arrival_soc_pct=draw.uniform(*self.charger.arrival_soc_pct),
            target_soc_pct=draw.uniform(*self.charger.target_soc_pct),
            arrival_temp_c=ambient_of_day_c(self.seed, day)[of_day] + draw.uniform(3.0, 8.0),
        )

    def metered_kw(self, cycle: Cycle, minute: int) -> float:
        """AC power at the meter: what the vehicle draws, what leaks away, and the wallbox's own little consumption."""
        standby_kw = self.standby_kw * (1.0 + 0.04 * self.noise[noise_index(self.number, minute)])
        return cycle.ac_kw[minute - cycle.start_minute] / (1.0 - self.leak_share) + standby_kw

    def voltage_v(self, metered_kw: float, minute: int) -> float:
        """Voltage at the meter: the grid's day, the site's offset, noise, and the sag that the current causes."""
        ampere = metered_kw * 1000.0 / (NOMINAL_V * self.charger.phases)
        noise_v = 0.6 * self.noise[noise_index(self.number + 1, minute)]
        sag_v = ampere * self.charger.source_ohm
        return GRID_V[minute % MINUTES_A_DAY] + self.site_v + noise_v - sag_v

    def _simulate(self, index: int) -> Cycle:
        plan, following = self.plan(index), self.plan(index + 1)
        trace = _Trace(self, plan, following.plug_minute)
        trace.stand(self.delay_min)
        trace.charge(plan.plugged_min - self.delay_min, plan.target_soc_pct)
        fall_pct = trace.soc_pct - following.arrival_soc_pct
        drive_min = max(10, round(fall_pct / 200.0 * self.battery_kwh / DRIVE_KW * 60.0))
        trace.drive_out(drive_min, trace.soc_pct - fall_pct / 2.0)
        trace.stand(following.plug_minute - trace.minute - drive_min)
        trace.drive_back(drive_min, following.arrival_soc_pct, following.arrival_temp_c)
        return trace.cycle()

    def charge_kw(self, soc_pct: float, temp_c: float, ripple: float) -> tuple[float, float, float]:
        """AC power drawn by the vehicle, DC power into the battery and heater power, while it charges."""
        kind = self.charger
        ac_max_kw = kind.ac_max_kw * (1.0 - self.leak_share)
        if temp_c < COLD_BELOW_C:
            dc_kw, linear = COLD_C_RATE * self.battery_kwh, 1.0 + kind.linear
            heater_kw = min(HEATER_KW, ac_max_kw - self.fixed_kw - dc_kw * linear)
            return dc_kw * linear + self.fixed_kw + heater_kw, dc_kw, heater_kw
        auxiliary_kw = self.fixed_kw + _thermal_kw(temp_c)
        accepted_kw = self.battery_kwh * ACCEPTED_C_RATE * math.exp((TAPER_FROM_SOC_PCT - soc_pct) / TAPER_WIDTH_PCT)
        half = (1.0 + kind.linear) / (2.0 * kind.ohmic_per_kw)
        possible_kw = math.sqrt(half * half + (ac_max_kw - auxiliary_kw) / kind.ohmic_per_kw) - half
        dc_kw = min(accepted_kw, possible_kw) * ripple
        return dc_kw * (1.0 + kind.linear + kind.ohmic_per_kw * dc_kw) + auxiliary_kw, dc_kw, 0.0


def _thermal_kw(temp_c: float) -> float:
    """Pumps, heater and fan that keep the pack in its comfortable range while it charges."""
    return HEATING_KW_PER_K * max(0.0, HEATING_BELOW_C - temp_c) + COOLING_KW_PER_K * max(0.0, temp_c - COOLING_ABOVE_C)


class _Trace:
    """A cycle while it is simulated: the present state, and one element a minute of what was."""

    def __init__(self, vehicle: Vehicle, plan: Plan, end_minute: int) -> None:
        self.vehicle = vehicle
        self.start_minute = self.minute = plan.plug_minute
        self.soc_pct = plan.arrival_soc_pct
        self.temp_c = plan.arrival_temp_c
        self.ambient_c = _ambient_c(vehicle.seed, plan.plug_minute, end_minute)
        self.kwh_per_k = vehicle.battery_kwh * HEAT_KWH_PER_K_AND_KWH
        self.socs_pct, self.temps_c, self.dcs_kw, self.acs_kw = array("d"), array("d"), array("d"), array("d")

    def _note(self, soc_pct: float, temp_c: float, dc_kw: float = 0.0, ac_kw: float = 0.0) -> None:
        self.soc_pct, self.temp_c = soc_pct, temp_c
        self.socs_pct.append(soc_pct)
        self.temps_c.append(temp_c)
        self.dcs_kw.append(dc_kw)
        self.acs_kw.append(ac_kw)
        self.minute += 1

    def _warmed_c(self, heat_kw: float) -> float:
        """Newton's law of cooling, plus the heat of this minute."""
        loss_c = (self.temp_c - self.ambient_c[self.minute - self.start_minute]) / RELAXATION_MIN
        return self.temp_c - loss_c + heat_kw / 60.0 / self.kwh_per_k

    def stand(self, minutes: int) -> None:
        for _ in range(minutes):
            self._note(self.soc_pct, self._warmed_c(0.0))

    def charge(self, minutes: int, target_soc_pct: float) -> None:
        vehicle, noise = self.vehicle, self.vehicle.noise
        until = self.minute + minutes
        while self.minute < until and self.soc_pct < target_soc_pct:
            # Ripple only lowers: the limit of the charger is the most that an honest meter counts.
            ripple = 1.0 - 0.004 * abs(noise[noise_index(vehicle.number, self.minute)])
            ac_kw, dc_kw, heater_kw = vehicle.charge_kw(self.soc_pct, self.temp_c, ripple)
            soc_pct = self.soc_pct + dc_kw / 60.0 / vehicle.battery_kwh * 100.0
            self._note(soc_pct, self._warmed_c(dc_kw * HEAT_OF_CURRENT + heater_kw), dc_kw, ac_kw)
        self.stand(until - self.minute)

    def drive_out(self, minutes: int, soc_pct: float) -> None:
        step_pct = (soc_pct - self.soc_pct) / minutes
        for _ in range(minutes):
            self._note(self.soc_pct + step_pct, self._warmed_c(DRIVE_KW * HEAT_OF_CURRENT))

    def drive_back(self, minutes: int, soc_pct: float, temp_c: float) -> None:
        """Ends in the state with which the next cycle begins, whatever this one was like."""
        step_pct, step_k = (soc_pct - self.soc_pct) / minutes, (temp_c - self.temp_c) / minutes
        for _ in range(minutes):
            self._note(self.soc_pct + step_pct, self.temp_c + step_k)

    def cycle(self) -> Cycle:
        return Cycle(self.start_minute, self.minute, self.socs_pct, self.temps_c, self.dcs_kw, self.acs_kw)
