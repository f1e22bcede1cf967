"""The straightforward rival: one transaction a reading, an INSERT into the history and an upsert of the live state."""

import asyncio

import aiomqtt
import asyncpg

from dev.bench import rival
from dev.bench.client import ClientCounts, ClientOptions
from dev.bench.rival import INSERT, UPSERT
from dev.bench.worker import Reports, run

WORKERS = 10
"""Readings that are stored at once, each on a connection of its own: commits then share the disk's sync."""


async def store(options: ClientOptions, reports: Reports) -> None:
    """Store until the bench says it is enough."""
    counts = ClientCounts()
    async with (
        asyncpg.create_pool(options.database_url, min_size=WORKERS, max_size=WORKERS) as pool,
        rival.subscribed(options) as client,
        asyncio.TaskGroup() as group,
    ):
        workers = [group.create_task(_work(client, pool, counts)) for _ in range(WORKERS)]
        counts.subscribed = True
        await reports.attend(lambda: counts)
        for worker in workers:
            worker.cancel()


async def _work(client: aiomqtt.Client, pool: asyncpg.Pool, counts: ClientCounts) -> None:
    async with pool.acquire() as connection:
        insert = {kind: await connection.prepare(statement) for kind, statement in INSERT.items()}
        upsert = {kind: await connection.prepare(statement) for kind, statement in UPSERT.items()}
        async for message in client.messages:
            kind, row = rival.decode(message)
            async with connection.transaction():
                await insert[kind].fetch(*row)
                await upsert[kind].fetch(*row)
            counts.done += 1


if __name__ == "__main__":
    run(store, ClientOptions)
