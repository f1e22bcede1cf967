"""The rollups kept up to date: hours closed, rolled up, and mended where readings came late.

Of several daemons one works at a time, step by step; `sql.rollups` says how. Half of the time is left to others. What
fails is tried again later: until then the analytics read the history instead, which is slower and never wrong.
"""

import asyncio
import time
from datetime import datetime
from functools import partial

import structlog

from daemon.backoff import Backoff
from daemon.metrics import Metrics
from daemon.rounds import repeat
from sql.measure import rollup_state
from sql.pool import Pool, lease
from sql.rollups import agree_on_power, count_late, lag, step
from sql.store import Kind

log = structlog.get_logger("fleetwatt.rollups")

INTERVAL_S = 20.0
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 60.0


class Rollups:
    """Works through what there is to do for one kind of device, at the start and then every few seconds."""

    def __init__(self, pool: Pool, kind: Kind, power_max_kw: float, metrics: Metrics) -> None:
        self._pool = pool
        self._kind = kind
        self._power_max_kw = power_max_kw
        self._metrics = metrics
        self._has_agreed = False

    async def run(self) -> None:
        """Rounds for ever."""
        backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        complain = partial(log.error, "rolling up failed, trying again", kind=self._kind.name)
        await repeat(self._work, INTERVAL_S, backoff, complain)

    async def _work(self) -> None:
        await self._agree()
        await self._round()

    async def _agree(self) -> None:
        if self._has_agreed:
            return
        async with lease(self._pool) as connection:
            agreed_kw = await agree_on_power(connection, self._kind, self._power_max_kw)
        if agreed_kw != self._power_max_kw:
            log.warning(
                "the rollups were made with another POWER_MAX_KW and stay so; "
                "to make them anew: python -m daemon rollups rebuild",
                kind=self._kind.name,
                power_max_kw=self._power_max_kw,
                rolled_up_with=agreed_kw,
            )
        self._has_agreed = True

    async def _round(self) -> None:
        async with lease(self._pool) as connection:
            self._metrics.rollup_late(self._kind.name, await count_late(connection, self._kind))
        has_more = True
        while has_more:
            started_at_s = time.monotonic()
            async with lease(self._pool) as connection:
                # Not this machine's clock: one that is ahead would close hours for everybody.
                now: datetime = await connection.fetchval("SELECT now()")
                has_more = await step(connection, self._kind, now)
                state = await rollup_state(connection, self._kind)
            self._metrics.rollup_lag(self._kind.name, lag(state, now).total_seconds())
            if has_more:
                await asyncio.sleep(time.monotonic() - started_at_s)
