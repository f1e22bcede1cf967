"""What the page says of each part, and which of its values it shows."""

from msgspec import Struct

from dev.bench.plan import PartName

PROCESSES = {
    "daemon": "daemon",
    "client": "client",
    "PostgreSQL": "PostgreSQL",
    "broker": "broker",
    "generator": "load",
}
"""As they are called in the records and on the page, in the order of the columns."""

INTRODUCTION = """\
Written by `python -m dev bench` (`make bench`): {runs}, intervals of {seconds} s (in other parts than
*sustained* {seconds_elsewhere} s) after a warm-up of at least {warm_up_s:g} s. Each figure is the median of the runs,
with the least and the greatest in brackets. Each measurement starts with a new, empty database and broker. Broker,
database, daemon and load share one machine; the load is a process of its own, on four connections. Another machine
gives other figures; ratios carry over better. [results.json](results.json) has every run."""

CHECKED = """\
After every measurement: the history has as many rows as the broker acknowledged messages, the live state one for each
device; where the daemon's sustained rate was measured, it counted no duplicate and rejected nothing."""

CEILING_SHARES = """\
What fleetwatt stores, sustained, with as many devices, as a share of it. It needs both halves at once, and the
daemon, on the same cores:"""


class Column(Struct, frozen=True):
    """One value in a table."""

    heading: str
    value: str
    digits: int = 0


class Section(Struct, frozen=True):
    """One part on the page."""

    title: str
    first_heading: str
    text: str
    columns: tuple[Column, ...]


STORED = Column("stored, readings/s", "stored_per_s")
SLOW = Column("batches the slow way", "slow_batches")

SECTIONS: dict[PartName, Section] = {
    "sustained": Section(
        "Sustained",
        "devices",
        """\
Readings are published and stored at the same time, on the same machine. The load is throttled to be at most
{window:,} readings ahead of what is stored, so no queue grows and nobody is idle for lack of work. Half of
the devices are meters, half vehicles. Every device sends once a round, with values that vary and the milliseconds of
now, and the order is drawn anew for each round: the rows of a batch are scattered over all devices. *First sight* is
the rate from the start until each device was seen once and has its live row; the interval that counts begins after it
and after the warm-up. A checkpoint is asked for when it begins, so its writes, and the whole pages that PostgreSQL
logs after one, are in the figure. [Rolling up](../rollups.md) is not: no hour ends in these minutes, or hardly any.""",
        (
            STORED,
            Column("slowest 5 s, readings/s", "slowest_5_s_per_s"),
            Column("first sight, readings/s", "first_sight_per_s"),
            Column("memory of the daemon, MiB", "resident_mib", 1),
            Column("history with its key, bytes/reading", "history_bytes"),
            Column("live state, bytes/device", "live_bytes"),
            Column("write-ahead log, bytes/reading", "wal_bytes"),
            Column("checkpoints", "checkpoints"),
            SLOW,
        ),
    ),
    "drain": Section(
        "A backlog",
        "messages",
        """\
Messages of {fleet:,} devices pile up at the broker while the daemon is away; then it is started, and nothing
else is published. The time runs from its first reading to the commit of its last.""",
        (
            STORED,
            Column("published before, messages/s", "published_per_s"),
            Column("memory after a tenth, MiB", "resident_mib after a tenth", 1),
            Column("memory at most, MiB", "resident_mib", 1),
            SLOW,
        ),
    ),
    "latency": Section(
        "From publish to SELECT",
        "messages/s",
        """\
The load publishes at its rate whatever becomes of it. Beside it a prober, in a process of its own, publishes readings
of one more device at random moments, {probes_per_s:g} a second on average, and asks the database for them on a
connection of its own, with {poll_ms:g} ms between an answer and the next question. The time runs from before the
packet is made to the answer that has the row. How long *a poll takes*, with the wait before it, is the resolution: on
average half of it is part of each time. `FLUSH_INTERVAL_S` (0.05 s) is how long a reading may wait for others.""",
        (
            Column("p50, ms", "p50_ms", 1),
            Column("p99, ms", "p99_ms", 1),
            Column("at most, ms", "max_ms", 1),
            Column("probes", "probes"),
            Column("a poll takes, ms", "poll_ms", 2),
            Column("published, messages/s", "published_per_s"),
        ),
    ),
    "rivals": Section(
        "Beside other clients",
        "client",
        """\
The same load into the same tables with the same durability, measured in the same way and in the same run, at
{fleet:,} devices; it is at most as many readings ahead, with 1,000 messages under way. *aiomqtt, a transaction each*:
aiomqtt, msgspec, asyncpg with prepared statements, uvloop; each reading is an INSERT into the history and an upsert
of the live state in one transaction, ten at a time on ten connections (`dev/bench/rival_single.py`). *aiomqtt,
batches*: the same with up to 10,000 readings at once, by `executemany` in one transaction a kind
(`dev/bench/rival_batches.py`). Both do less than fleetwatt: aiomqtt acknowledges a message when it comes in and not
after the commit, so what they hold in memory is lost when they are killed; and nothing is checked, kept where it is
refused, or spooled. They are not given a backlog: behind 100,000 messages aiomqtt's `subscribe` times out.""",
        (STORED, Column("memory of the client, MiB", "resident_mib", 1)),
    ),
    "ceiling": Section(
        "What would be possible",
        "alone",
        """\
Each half of the way by itself. *COPY*: rows like these into the same tables, in transactions of 5,000 sorted rows on
two connections, made between the copies, so PostgreSQL alone would take more. *COPY and live state*: with the upsert
that the daemon does. *broker*: the load, Mosquitto, and the daemon's subscriber, which neither decodes nor stores and
acknowledges at once. All at {fleet:,} devices.""",
        (STORED,),
    ),
}
