"""`/status`: the headline, the books as a sum that closes, and what is wrong, for programs and for people."""

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog

from daemon.accounts import Accounts
from daemon.status import LastProblem, identity, readings_of
from dev.broker import PrivateBroker
from dev.house import eventually
from sql import logs
from tests.test_health import READING, Daemon, publish, running


async def status(daemon: Daemon) -> dict[str, Any]:
    """What it says to programs; the sum must close each time."""
    answer = await daemon.get("/status")
    assert (answer.status, answer.content_type) == (200, "application/json")
    found: dict[str, Any] = json.loads(answer.text)
    books = found["readings"]
    assert books["received"] == sum(
        books[place] for place in ("stored", "duplicate", "rejected", "spooled", "inFlight")
    )
    return found


async def settled(daemon: Daemon, readings: int) -> dict[str, Any]:
    """The status once so many readings are through."""
    found: dict[str, Any] = {}

    async def through() -> bool:
        found.update(await status(daemon))
        return bool(found["readings"]["received"] == readings and not found["readings"]["inFlight"])

    await eventually(through)
    return found


async def test_a_healthy_daemon_says_that_nothing_is_unaccounted_for(broker: PrivateBroker, database_url: str) -> None:
    async with running(broker, database_url) as daemon:
        await daemon.ready()
        nothing = await status(daemon)
        assert (nothing["headline"], nothing["lastCommitAt"], nothing["receiptToCommitS"]) == (
            "0 unaccounted",
            None,
            None,
        )
        again = ("vehicles/v1/reading", b'{"soc":50,"kwhDeliveredDc":1,"batteryTemp":20,"timestamp":1700000000}')
        await publish(broker, ("meters/m1/reading", READING), again, again, ("meters/m1/reading", b"garbage"))
        found = await settled(daemon, 4)
        assert found["headline"] == "0 unaccounted"
        assert found["identity"] == "received 4 = stored 2 + duplicate 1 + rejected 1 + spooled 0 + in flight 0"
        assert found["readings"]["storedByKind"] == {"meter": 1, "vehicle": 1}
        assert found["readings"]["rejectedByReason"] == {"malformed_json": 1}
        assert (found["ready"], found["faults"], found["subscribed"], found["spool"]) == (True, [], True, None)
        assert found["ratesPerS"]["received"] > 0
        assert found["receiptToCommitS"]["max"] < 60
        assert found["deviceToCommitS"]["max"] > 10_000_000  # the vehicle's reading is of 2023
        assert found["lastCommitAt"].endswith("Z")
        assert found["oldestUnacknowledgedS"] == 0


async def test_people_get_text(broker: PrivateBroker, database_url: str) -> None:
    async with running(broker, database_url) as daemon:
        await daemon.ready()
        await publish(broker, ("meters/m1/reading", READING), ("meters/m1/reading", b"garbage"))
        await settled(daemon, 2)
        for accept in ("text/plain", "text/html,application/xhtml+xml,*/*;q=0.8"):
            lines = (await daemon.get("/status", accept)).text.splitlines()
            assert lines[0] == "0 unaccounted"
            assert lines[1].startswith("received 2 = stored 1 + duplicate 0 + rejected 1")
            told = {line[:18].strip(): line[19:] for line in lines[3:]}
            assert (told["state"], told["rejected"], told["last problem"]) == ("ready", "1 malformed_json", "none")
            assert told["spool"] == "off (SPOOL_DIR is not set)"


async def test_an_outage_is_seen_from_the_first_sign_to_the_empty_spool(
    broker: PrivateBroker, database_url: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    last_problem = LastProblem()
    logs.configure("json", "info", last_problem)
    settings = {"spool_dir": str(tmp_path), "spool_after_s": 0.3}
    async with running(broker, database_url, last_problem, **settings) as daemon:
        await daemon.ready()
        async with database.transaction():
            await database.execute("LOCK TABLE meter_reading")
            await publish(broker, ("meters/m1/reading", READING))
            found = await settled(daemon, 1)
            assert found["readings"]["spooled"] == found["spool"]["readings"] == 1
            assert found["spool"]["folder"] == str(tmp_path)
            assert found["spool"]["bytes"] > 0
            found = await status(daemon)  # again: what is ready is asked for before the books are read
            assert not found["ready"]
            assert "readings go to the spool" in found["faults"][0]
            assert found["lastProblem"]["text"].startswith("the database stays away, readings go to the spool")
            text = (await daemon.get("/status", "text/plain")).text
            assert "spooled 1 +" in text
            assert "1 readings, 0." in text

        async def drained() -> bool:
            return bool((await status(daemon))["readings"]["stored"] == 1)

        await eventually(drained)
        found = await status(daemon)
        assert (found["readings"]["spooled"], found["spool"]["readings"], found["spool"]["oldestS"]) == (0, 0, 0)


@pytest.mark.parametrize(
    "rubbish",
    [
        b"R\0\0\0\x05\0\0\0\0",  # a message that ends too early
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
async def test_a_database_that_answers_rubbish_does_not_end_the_daemon(broker: PrivateBroker, rubbish: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(rubbish)
        await writer.drain()
        await reader.read(1000)
        writer.close()
        asked.set()

    asked = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with running(broker, f"postgresql://somebody:secret@127.0.0.1:{port}/none?sslmode=disable") as daemon:
        async with asyncio.timeout(30):
            await asked.wait()
            asked.clear()
            await asked.wait()
        found = await status(daemon)
        assert not found["ready"]
    server.close()
    await server.wait_closed()


async def test_a_broker_that_is_away_is_named(broker: PrivateBroker, database_url: str) -> None:
    broker.process.stop()
    async with running(broker, database_url) as daemon:

        async def said() -> bool:
            found = await status(daemon)
            return "not subscribed at the broker" in found["faults"] and not found["subscribed"]

        await eventually(said)
        found = await status(daemon)
        assert (found["ready"], found["broker"]) == (False, f"127.0.0.1:{broker.port}")


def test_a_reading_that_nobody_counted_is_in_the_sum() -> None:
    books = Accounts()
    books.receive(5)
    books.in_flight = 3
    assert identity(readings_of(books)).endswith("in flight 3 + unaccounted 2")


def test_the_last_problem_is_the_last_warning_or_error_with_what_caused_it() -> None:
    last_problem = LastProblem()
    logs.configure("json", "info", last_problem)
    log = structlog.get_logger("any")
    log.info("all is well")
    assert text_of(last_problem) is None
    log.warning("broker away", error="connection refused")
    log.info("back")
    assert text_of(last_problem) == "broker away: connection refused"
    log.error("stands still")
    assert text_of(last_problem) == "stands still"


def text_of(last_problem: LastProblem) -> str | None:
    return last_problem.problem.text if last_problem.problem else None
