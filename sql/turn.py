"""Work that several daemons would do for the same database, done by one at a time.

Rule: whoever does such work takes the turn in the very transaction that does it. The turn ends with the transaction,
also where its owner dies or a pooler gives the session to somebody else. Who does not get it leaves the work to others.
"""

from sql.pool import Connection
from sql.queries import query

MAINTENANCE = "maintenance"


async def take_turn(connection: Connection, work: str) -> bool:
    """Whether the transaction has the turn for the work of that name, until it ends."""
    return bool(await connection.fetchval(query("take_turn"), work))
