"""The fleet at a glance: what the first page shows, looked up once for all who look at it.

Each sort of figure has its own pace. Who was heard from, and the daemons' books, are new each second; what takes the
database longer is looked up again only when it is older than its time.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from msgspec import Struct

from api.contract import Sidecar
from api.database import Database
from api.web.books import Books, read_books
from sql.analytics import FleetPerformance, Performance, Rules, fleet, performances
from sql.fleet import VehicleSummary
from sql.hours import DAY, HOUR, hour_floor
from sql.measure import rollup_state
from sql.overview import Heard, HourOfFleet, count_heard, hours_of_fleet
from sql.pool import Connection
from sql.rejections import Chosen, Groups, group
from sql.store import METER, VEHICLE

T = TypeVar("T")

HEARD_WITHIN = timedelta(minutes=5)
JUST = timedelta(seconds=10)
FLEET_EVERY_S = 10.0
SLOW_EVERY_S = 60.0
SMALL_FLEET_MAX = 1000
"""Vehicles of which the last 24 hours are read up to now; of more, full hours, which take a hundredth of the time."""
LAG_MAX = 2 * DAY
"""Rollups that are further behind say nothing of how the fleet is now."""
WORST = 10
REASONS = 100


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
    rejections: Groups
    low_efficiency: float

    @property
    def lost_share(self) -> float | None:
        """Of the AC energy, that did not arrive."""
        if self.fleet is None or self.fleet.loss_kwh is None:
            return None
        return self.fleet.loss_kwh / self.fleet.ac_kwh

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """Why readings were rejected, and how many, the most frequent first."""
        counts: Counter[str] = Counter()
        for one in self.rejections.items:
            counts[one.reason] += one.rejections
        return counts.most_common()

    @property
    def readings_per_s(self) -> float:
        """From the daemons' books; without them, devices heard from in the last seconds."""
        if self.books.daemons > len(self.books.away):
            return self.books.received_per_s
        return sum(kind.just_heard for kind in self.heard.values()) / JUST.total_seconds()


class Kept(Generic[T]):
    """What a look-up found, until it is too old."""

    def __init__(self, every_s: float, database: Database, find: Callable[[Connection], Awaitable[T]]) -> None:
        self._every_s = every_s
        self._database = database
        self._find = find
        self._found: tuple[T, float] | None = None
        self._turn = asyncio.Lock()

    async def get(self) -> T:
        """As it is, or looked up anew; by one at a time, while the others wait for what it finds."""
        async with self._turn:
            if self._found is None or time.monotonic() >= self._found[1] + self._every_s:
                async with self._database.connection() as connection:
                    self._found = (await self._find(connection), time.monotonic())
            return self._found[0]

    def forget(self) -> None:
        """Look it up anew next time."""
        self._found = None


class Watch:
    """Looks up the overview."""

    def __init__(self, sidecar: Sidecar) -> None:
        settings = sidecar.settings
        self._database = sidecar.database
        self._daemon_urls = settings.daemon_url_list
        self._rules = Rules(low_efficiency=settings.low_efficiency, power_max_kw=settings.power_max_kw)
        self._fleet = Kept(FLEET_EVERY_S, self._database, self._find_fleet)
        self._worst = Kept(SLOW_EVERY_S, self._database, self._find_worst)
        self._hours = Kept(SLOW_EVERY_S, self._database, self._find_hours)
        self._rejections = Kept(FLEET_EVERY_S, self._database, self._find_rejections)

    async def overview(self) -> Overview:
        """Everything; raises ProblemError where the database is away."""
        (performance, is_up_to_now), worst, hours, rejections, heard, books = await asyncio.gather(
            self._fleet.get(),
            self._worst.get(),
            self._hours.get(),
            self._rejections.get(),
            self._count_heard(),
            read_books(self._daemon_urls),
        )
        return Overview(
            fleet=performance,
            is_up_to_now=is_up_to_now,
            worst=worst,
            hours=hours,
            heard=heard,
            books=books,
            rejections=rejections,
            low_efficiency=self._rules.low_efficiency,
        )

    def forget(self) -> None:
        """Links have changed: look at all of it anew."""
        for kept in (self._fleet, self._worst, self._hours, self._rejections):
            kept.forget()

    async def _count_heard(self) -> dict[str, Heard]:
        async with self._database.connection() as connection:
            now = datetime.now(UTC)
            return await count_heard(connection, now - HEARD_WITHIN, now - JUST)

    async def _find_fleet(self, connection: Connection) -> tuple[FleetPerformance | None, bool]:
        now = datetime.now(UTC)
        heard = await count_heard(connection, now, now)
        is_small = heard[VEHICLE.name].known <= SMALL_FLEET_MAX
        end = now if is_small else min(await _rolled_through(connection), hour_floor(now))
        if end < now - LAG_MAX:
            return None, is_small
        return await fleet(connection, end - DAY, end, self._rules, WORST), is_small

    async def _find_worst(self, connection: Connection) -> list[Curve]:
        performance, _ = await self._fleet.get()
        if performance is None:
            return []
        end = hour_floor(performance.end)
        windows = [(end - DAY + n * HOUR, end - DAY + (n + 1) * HOUR) for n in range(24)]
        return [
            Curve(one, [hour.judged_efficiency for hour in await self._hours_of(connection, one.vehicle_id, windows)])
            for one in performance.worst
        ]

    async def _hours_of(
        self, connection: Connection, vehicle_id: str, windows: list[tuple[datetime, datetime]]
    ) -> list[Performance]:
        return await performances(connection, vehicle_id, windows, self._rules) or []

    async def _find_hours(self, connection: Connection) -> list[HourOfFleet]:
        end = min(await _rolled_through(connection), hour_floor(datetime.now(UTC)))
        return await hours_of_fleet(connection, end - DAY, end)

    async def _find_rejections(self, connection: Connection) -> Groups:
        return await group(connection, Chosen(since=datetime.now(UTC) - DAY), REASONS)


async def _rolled_through(connection: Connection) -> datetime:
    """Before this, both sides are rolled up."""
    states = [await rollup_state(connection, kind) for kind in (METER, VEHICLE)]
    return min(state.counted_through for state in states)
