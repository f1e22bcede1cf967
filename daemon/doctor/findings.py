"""What an examination finds: a line with a level, a sentence, and what mends it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct

Level: TypeAlias = Literal["ok", "warning", "failure", "skipped"]
"""`skipped`: nothing was found out, because something else is missing; the sentence says what."""


class Finding(Struct, frozen=True):
    """One line of the report."""

    name: str
    """Stays the same between releases, for automation; docs/doctor.md has them all."""
    level: Level
    text: str
    remedy: str | None = None
    """What to do or to paste; every warning and every failure has one."""


Tell: TypeAlias = Callable[[Finding], None]
"""Takes each finding as it is made."""


def ok(name: str, text: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", text)


def warning(name: str, text: str, remedy: str) -> Finding:
    """It works, and will not for ever or not in every case."""
    return Finding(name, "warning", text, remedy)


def failure(name: str, text: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(name, "failure", text, remedy)


def skipped(name: str, because: str) -> Finding:
    """Nothing was found out."""
    return Finding(name, "skipped", f"skipped because {because}")


async def guarded(name: str, check: Callable[[], Awaitable[Sequence[Finding]]], timeout_s: float) -> Sequence[Finding]:
    """The findings of `check`; one that takes too long, or that meets what nobody expected, is a finding too."""
    try:
        async with asyncio.timeout(timeout_s):
            return await check()
    except TimeoutError:
        return [failure(name, f"no answer within {timeout_s:.0f} s", "run the check again; look at load and network")]
    except Exception as error:
        # Of any kind: what the doctor did not expect is the very thing that the technician wants to see.
        text = f"could not be examined: {type(error).__name__}: {error}"
        return [failure(name, text, "mend what the message says, and run the check again")]
