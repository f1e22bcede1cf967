"""Publishing recorded readings: `{"topic": …, "payload": …}` a line."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dev.feed import Feed
from dev.stack import address


class ReplayError(Exception):
    """A recording cannot be read."""


class Recorded(msgspec.Struct):
    """One line. The payload stays as it was written, to the last digit."""

    topic: str
    payload: msgspec.Raw


async def replay(path: Path, folder: Path) -> None:
    """Publish a recording to `MQTT_URL`, or to the stack that runs in `folder`; prints what was acknowledged."""
    mqtt_url = address("MQTT_URL", folder)
    messages = list(_messages(path))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    feed = Feed(mqtt_url, f"fleetwatt-replay-{os.getpid()}")
    with Progress(*columns) as progress:
        task = progress.add_task(path.name, total=len(messages))
        await feed.send(messages, lambda count: progress.advance(task, count))
    await feed.close()
    print(f"{len(messages):,} messages published, {progress.tasks[0].completed:,.0f} acknowledged by the broker")


def _messages(path: Path) -> Iterator[tuple[str, bytes]]:
    decoder = msgspec.json.Decoder(Recorded)
    number = 0
    try:
        with path.open("rb") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    recorded = decoder.decode(line)
                    yield recorded.topic, bytes(recorded.payload)
    except OSError as error:
        raise ReplayError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise ReplayError(f'{path}, line {number}: {error}; expected {{"topic": …, "payload": …}}') from error
