"""The database as seen from outside the pool: what a pool that is wedged cannot tell."""

import asyncio

from sql.pool import connect
from sql.queries import query

TIMEOUT_S = 3.0
"""For all of it: connecting, asking, hanging up."""


async def is_free(database_url: str, application_name: str) -> bool:
    """Whether the database takes a new connection, answers on it, and is at work on nothing for that name.

    A statement of that name that it is at work on, be it slow or held up by a lock, is what its sender waits for.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            connection = await connect(database_url, server_settings={"application_name": application_name})
            try:
                busy = await connection.fetchval(query("count_busy_sessions"))
                await connection.close()
            finally:
                connection.terminate()
    except Exception:  # whatever a server or a driver in disorder may say, it is not at work for us
        return False
    return bool(busy == 0)
