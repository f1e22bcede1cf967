"""A client in the daemon's place, as a worker: what it is told and what it tells."""

from msgspec import Struct


class ClientOptions(Struct, frozen=True):
    """Where it works."""

    port: int
    database_url: str


class ClientCounts(Struct):
    """What it says of itself."""

    subscribed: bool = False
    done: int = 0
    """Messages that it has dealt with to the end."""
