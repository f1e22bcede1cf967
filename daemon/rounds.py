"""Work done round by round, for ever: a round that fails is said once and tried again sooner."""

import asyncio
from collections.abc import Awaitable, Callable

from daemon.backoff import Backoff
from sql.errors import sqlstate


async def repeat(
    work: Callable[[], Awaitable[None]], interval_s: float, backoff: Backoff, complain: Callable[..., None]
) -> None:
    """Work again and again, `interval_s` after it went well; `complain` of an error unless it is the one before."""
    said: str | None = None
    while True:
        try:
            await work()
        except Exception as error:  # whatever a server or a driver in disorder may say
            text = str(error) or type(error).__name__
            if text != said:
                complain(error=text, sqlstate=sqlstate(error))
            said = text
            await asyncio.sleep(backoff.next_s())
        else:
            said = None
            backoff.reset()
            await asyncio.sleep(interval_s)
