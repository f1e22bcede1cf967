"""The better rival: batches, each kind with `executemany` in one transaction, both kinds at once on two connections."""

import asyncio
from collections.abc import Sequence

import aiomqtt
import asyncpg

from dev.bench import rival
from dev.bench.client import ClientCounts, ClientOptions
from dev.bench.rival import INSERT, UPSERT, Row
from dev.bench.worker import Reports, run

ROWS_MAX = 10_000
FLUSH_INTERVAL_S = 0.05
"""The same as the daemon's defaults."""


async def store(options: ClientOptions, reports: Reports) -> None:
    """Store until the bench says it is enough."""
    counts, rows = ClientCounts(), asyncio.Queue[tuple[str, Row]]()
    async with (
        asyncpg.create_pool(options.database_url, min_size=2, max_size=2) as pool,
        rival.subscribed(options) as client,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(_receive(client, rows)), group.create_task(_write(pool, rows, counts))]
        counts.subscribed = True
        await reports.attend(lambda: counts)
        for task in tasks:
            task.cancel()


async def _receive(client: aiomqtt.Client, rows: asyncio.Queue[tuple[str, Row]]) -> None:
    async for message in client.messages:
        rows.put_nowait(rival.decode(message))


async def _write(pool: asyncpg.Pool, rows: asyncio.Queue[tuple[str, Row]], counts: ClientCounts) -> None:
    while True:
        batch: dict[str, list[Row]] = {kind: [] for kind in INSERT}
        kind, row = await rows.get()
        batch[kind].append(row)
        await asyncio.sleep(FLUSH_INTERVAL_S)
        for _ in range(min(rows.qsize(), ROWS_MAX - 1)):
            kind, row = rows.get_nowait()
            batch[kind].append(row)
        await asyncio.gather(*(_store(pool, kind, some) for kind, some in batch.items() if some))
        counts.done += sum(map(len, batch.values()))


async def _store(pool: asyncpg.Pool, kind: str, rows: Sequence[Row]) -> None:
    ordered = sorted(rows)
    newest = {row[0]: row for row in ordered}
    async with pool.acquire() as connection, connection.transaction():
        await connection.executemany(INSERT[kind], ordered)
        await connection.executemany(UPSERT[kind], newest.values())


if __name__ == "__main__":
    run(store, ClientOptions)
