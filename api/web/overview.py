"""The fleet at a glance: what the first page shows, looked up once for all who look at it.

Each sort of figure has its own pace. Who was heard from, and the daemons' books, are new each second; what takes the
database longer is looked up again only when it is older than its time.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Generic, TypeVar

from msgspec import Struct

from api.cache import Cache
from api.contract import Sidecar
from api.web.books import Books, read_books
from sql.analytics import FleetPerformance, Rules, fleet, judged_efficiencies, performances
from sql.fleet import VehicleSummary
from sql.hours import DAY, HOUR, hour_floor
from sql.measure import rollup_state
from sql.overview import Heard, HourOfFleet, Silent, count_heard, hours_of_fleet, list_silent
from sql.pool import Connection
from sql.rejections import count_by_reason
from sql.store import METER, VEHICLE, Kind

T = TypeVar("T")

HEARD_WITHIN = timedelta(minutes=5)
INTERVAL_S = 1.0
"""How old at most is what changes all the time."""
FLEET_EVERY_S = 10.0
SLOW_EVERY_S = 60.0
SMALL_FLEET_MAX = 1000
"""Vehicles, or meters, of which the last 24 hours are read up to now. Of more, full hours: much less work."""
LAG_MAX = 2 * DAY
"""Rollups that are further behind say nothing of how the fleet is now."""
WORST = 10
DEVICES = 25
FILTERS_MAX = 100
"""Of devices, whose answers are kept; the one that was not asked for the longest goes first."""
FAILED_S = 3.0
"""For so long nobody tries again what has failed."""
STALE_S_MAX = 5.0
"""Beyond its time, that a figure is shown while a newer one is asked for."""


class Curve(Struct, frozen=True):
    """One of the worst vehicles, with its efficiency by hour; None where an hour says nothing."""

    vehicle: VehicleSummary
    efficiency: list[float | None]


class Overview(Struct, frozen=True):
    """Everything that the first page shows."""

    fleet: FleetPerformance | None
    """None: a large fleet of which no full hour was rolled up lately."""
    is_up_to_now: bool
    worst: list[Curve]
    hours: list[HourOfFleet]
    heard: dict[str, Heard]
    books: Books
    rejected: dict[str, int]
    """By reason, in the last 24 hours, the most frequent first."""
    low_efficiency: float

    @property
    def lost_share(self) -> float | None:
        """Of the AC energy, that did not arrive."""
        if self.fleet is None or self.fleet.loss_kwh is None:
            return None
        return self.fleet.loss_kwh / self.fleet.ac_kwh


class Kept(Generic[T]):
    """What a look-up found, until it is too old. Whoever asks meanwhile waits for the one look-up under way."""

    def __init__(self, every_s: float, find: Callable[[], Awaitable[T]], cache: Cache) -> None:
        """When the cache is cleared, since links have changed or the like, this is too old as well."""
        self._every_s = every_s
        self._find = find
        self._cache = cache
        self._clears = cache.clears
        self._looking: asyncio.Task[T] | None = None
        self._good_until_s = 0.0
        self._last: T | None = None

    async def get(self) -> T:
        """As it is, or looked up anew. A failure goes to all who wait, and to those who come soon after."""
        task = self._looking
        if task is None or self._is_old(task):
            self._clears = self._cache.clears
            task = self._looking = asyncio.create_task(self._look(), name="overview")
            # The error is taken note of, also where everybody who waited has gone.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        # One of many who wait may go away; the others still want the answer.
        return await asyncio.shield(task)

    async def latest(self) -> T:
        """What was found last, while something newer is looked up; waits for that where the last is none or too old."""
        newer = asyncio.ensure_future(self.get())
        newer.add_done_callback(lambda done: done.cancelled() or done.exception())
        is_stale = time.monotonic() >= self._good_until_s + STALE_S_MAX
        return await newer if self._last is None or is_stale else self._last

    async def close(self) -> None:
        """End the look-up that is under way."""
        if self._looking and not self._looking.done():
            self._looking.cancel()
            await asyncio.wait([self._looking])

    def _is_old(self, task: asyncio.Task[T]) -> bool:
        # Also one that is under way, if it may have seen what was before.
        return self._clears != self._cache.clears or (task.done() and time.monotonic() >= self._good_until_s)

    async def _look(self) -> T:
        try:
            found = await self._find()
        except Exception:
            self._good_until_s = time.monotonic() + FAILED_S
            raise
        self._good_until_s = time.monotonic() + self._every_s
        self._last = found
        return found


class Watch:
    """Looks up the overview."""

    def __init__(self, sidecar: Sidecar) -> None:
        settings = sidecar.settings
        self._database = sidecar.database
        self._rules = Rules(low_efficiency=settings.low_efficiency, power_max_kw=settings.power_max_kw)
        self._cache = cache = sidecar.cache
        self._heard = Kept(INTERVAL_S, self._count_heard, cache)
        self._books = Kept(INTERVAL_S, partial(read_books, settings.daemon_url_list), cache)
        self._silent: OrderedDict[tuple[Kind, str], Kept[list[Silent]]] = OrderedDict()
        self._fleet = Kept(FLEET_EVERY_S, self._find_fleet, cache)
        self._worst = Kept(SLOW_EVERY_S, self._find_worst, cache)
        self._hours = Kept(SLOW_EVERY_S, self._find_hours, cache)
        self._rejected = Kept(SLOW_EVERY_S, self._count_rejected, cache)

    async def overview(self) -> Overview:
        """Everything; raises ProblemError where the database is away."""
        (performance, is_up_to_now), worst, hours, rejected, heard, books = await asyncio.gather(
            self._fleet.get(),
            self._worst.get(),
            self._hours.get(),
            self._rejected.get(),
            self._heard.get(),
            self._books.latest(),
        )
        return Overview(
            fleet=performance,
            is_up_to_now=is_up_to_now,
            worst=worst,
            hours=hours,
            heard=heard,
            books=books,
            rejected=rejected,
            low_efficiency=self._rules.low_efficiency,
        )

    async def silent(self, kind: Kind, prefix: str) -> list[Silent]:
        """The devices that have been silent for the longest, of those whose ids begin so."""
        key = (kind, prefix)
        kept = self._silent.get(key)
        if kept is None:
            kept = self._silent[key] = Kept(INTERVAL_S, partial(self._find_silent, kind, prefix), self._cache)
        self._silent.move_to_end(key)
        if len(self._silent) > FILTERS_MAX:
            self._silent.popitem(last=False)  # who waits for it still gets its answer
        return await kept.get()

    async def close(self) -> None:
        """End what is being looked up."""
        await asyncio.gather(
            *(kept.close() for kept in self._silent.values()),
            *(
                kept.close()
                for kept in (self._heard, self._books, self._fleet, self._worst, self._hours, self._rejected)
            ),
        )

    async def _count_heard(self) -> dict[str, Heard]:
        now = datetime.now(UTC)
        async with self._database.connection() as connection:
            return await count_heard(connection, now - HEARD_WITHIN)

    async def _find_silent(self, kind: Kind, prefix: str) -> list[Silent]:
        async with self._database.connection() as connection:
            return await list_silent(connection, kind, prefix, DEVICES)

    async def _find_fleet(self) -> tuple[FleetPerformance | None, bool]:
        is_small = max(kind.known for kind in (await self._heard.get()).values()) <= SMALL_FLEET_MAX
        async with self._database.connection() as connection:
            now = datetime.now(UTC)
            end = now if is_small else min(await _rolled_through(connection), hour_floor(now))
            if end < now - LAG_MAX:
                return None, is_small
            return await fleet(connection, end - DAY, end, self._rules, WORST), is_small

    async def _find_worst(self) -> list[Curve]:
        performance, _ = await self._fleet.get()
        if performance is None:
            return []
        windows = [(hour, hour + HOUR) for hour in _hours_before(hour_floor(performance.end))]
        curves = []
        async with self._database.connection() as connection:
            for one in performance.worst:
                hours = await performances(connection, one.vehicle_id, windows, self._rules) or []
                curves.append(Curve(one, judged_efficiencies(hours)))
        return curves

    async def _find_hours(self) -> list[HourOfFleet]:
        async with self._database.connection() as connection:
            now = datetime.now(UTC)
            end = min(await _rolled_through(connection), hour_floor(now))
            if end < now - LAG_MAX:
                return []
            found = {hour.hour: hour for hour in await hours_of_fleet(connection, end - DAY, end)}
        return [found.get(hour, HourOfFleet(hour, 0.0, 0.0)) for hour in _hours_before(end)] if found else []

    async def _count_rejected(self) -> dict[str, int]:
        async with self._database.connection() as connection:
            return await count_by_reason(connection, datetime.now(UTC) - DAY)


def _hours_before(end: datetime) -> list[datetime]:
    """The 24 hours before a full hour."""
    return [end - DAY + n * HOUR for n in range(24)]


async def _rolled_through(connection: Connection) -> datetime:
    """Before this, both sides are rolled up."""
    states = [await rollup_state(connection, kind) for kind in (METER, VEHICLE)]
    return min(state.counted_through for state in states)
