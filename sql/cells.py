"""Cells: what the readings of one device in a piece of time add up to, and how cells add up to larger ones.

Rule: cells of one device that follow each other can be put together without a look at the readings, and whoever does so
in larger or smaller steps comes to the same. Energy, counts and extremes simply add up, since what a reading counts
depends on its neighbours and never on the piece (docs/energy.md). Covered time needs the readings at the seams, so a
cell keeps its first and its last one, each with the cadence there: so much of the silence between two cells is covered.
"""

from collections.abc import Sequence
from datetime import datetime
from operator import add

from msgspec import Struct
from msgspec.structs import astuple

from sql.devices import EnergyMode


class Cell(Struct, frozen=True):
    """The readings of a device in a piece of time; there is at least one. Columns as in the tables of the rollups."""

    samples: int
    first_ts: datetime
    last_ts: datetime
    first_cadence_s: float
    """The usual distance of readings in the hour of the first one, in seconds; from 1 to 3600."""
    last_cadence_s: float
    covered_s: float
    """Between the first reading and the last."""
    kwh_interval: float
    kwh_register: float = 0.0
    kwh_session: float = 0.0
    register_impossible_steps: int = 0
    register_resets: int = 0
    register_dips: int = 0
    register_glitches: int = 0
    session_impossible_steps: int = 0
    session_resets: int = 0
    session_dips: int = 0
    session_glitches: int = 0
    battery_temp_sum: float = 0.0


class Total(Struct):
    """What a piece of time [start, end) of one device comes to, its kWh read in the device's energy mode."""

    samples: int = 0
    kwh: float = 0.0
    covered_s: float = 0.0
    impossible_steps: int = 0
    resets: int = 0
    dips: int = 0
    glitches: int = 0
    battery_temp_sum: float = 0.0

    def plus(self, other: "Total") -> "Total":
        """Both pieces together."""
        return Total(*map(add, astuple(self), astuple(other)))


def total(cells: Sequence[Cell], energy_mode: EnergyMode, start: datetime, end: datetime) -> Total:
    """Add up the cells of [start, end), which are in the order of time."""
    if not cells:
        return Total()
    answer = Total(covered_s=_covered_s(cells, start, end))
    for cell in cells:
        answer.samples += cell.samples
        answer.battery_temp_sum += cell.battery_temp_sum
        match energy_mode:
            case "interval":
                answer.kwh += cell.kwh_interval
            case "register":
                answer.kwh += cell.kwh_register
                answer.impossible_steps += cell.register_impossible_steps
                answer.resets += cell.register_resets
                answer.dips += cell.register_dips
                answer.glitches += cell.register_glitches
            case "session":
                answer.kwh += cell.kwh_session
                answer.impossible_steps += cell.session_impossible_steps
                answer.resets += cell.session_resets
                answer.dips += cell.session_dips
                answer.glitches += cell.session_glitches
    return answer


def _covered_s(cells: Sequence[Cell], start: datetime, end: datetime) -> float:
    """What lies within one cadence of a reading in [start, end)."""
    covered_s = 0.0
    silent_since, reach_s = start, 0.0
    for cell in cells:
        silence_s = (cell.first_ts - silent_since).total_seconds()
        covered_s += min(silence_s, reach_s + cell.first_cadence_s) + cell.covered_s
        silent_since, reach_s = cell.last_ts, cell.last_cadence_s
    return covered_s + min(reach_s, (end - silent_since).total_seconds())
