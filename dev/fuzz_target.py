"""What a fuzz target is: a check that any bytes must pass, what it starts from, and the words of its language."""

from collections.abc import Callable

from msgspec import Struct


class Broken(Exception):  # noqa: N818 - no error of a caller: it says which promise of ours does not hold
    """An input for which a promise does not hold."""


class Target(Struct, frozen=True):
    """One thing to fuzz."""

    check: Callable[[bytes], None]
    """Raises Broken, or whatever escapes from the code under test."""
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]
    """What the fuzzer would need long to guess."""
    bytes_max: int


def expect(holds: bool, promise: str, *details: object) -> None:
    """Raise Broken with the promise and what contradicts it, unless it holds."""
    if not holds:
        raise Broken(f"{promise}: {details!a}")
