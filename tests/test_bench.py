"""The benchmark: what its load is made of, its statistics, page and plot, and each part against the real thing."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import mqtt5
import msgspec
import pytest

from daemon.readings import METER_FORM, VEHICLE_FORM, Receipt, ReceiptClock, Rules, decode
from dev import __main__ as command_line
from dev.bench.bed import Bed
from dev.bench.generator import Link, LoadCounts, LoadOptions
from dev.bench.packets import PACKET_IDS, Fleet
from dev.bench.page import write_page
from dev.bench.parts import PARTS, seconds_of, steps
from dev.bench.plan import PART_NAMES, QUICK, Plan
from dev.bench.plot import write_plot
from dev.bench.results import Check, Measured, Record, Results, Spread, Step, quantile, spread_of
from dev.bench.run import bench
from dev.bench.worker import WorkerError, working
from dev.broker import PrivateBroker
from dev.house import House
from dev.postgres import PrivatePostgres
from sql.store import Row

NOW_MS = int(datetime(2026, 5, 4, 12, tzinfo=UTC).timestamp() * 1000)
TINY = Plan(
    runs=1, seconds=1, seconds_elsewhere=1, warm_up_s=0.2, devices=(1_000,), fleet=1_000, backlog=3_000, rates=(500,)
)
RULES = Rules(clock_ahead_max=timedelta(minutes=5), retention=None)


def silent(line: str) -> None:
    """Nobody watches."""


# The load.


def packets_of(buffer: bytes) -> list[mqtt5.PublishPacket]:
    packets, rest = [], memoryview(buffer)
    while rest:
        packet, size = mqtt5.read(rest)
        assert isinstance(packet, mqtt5.PublishPacket)
        packets.append(packet)
        rest = rest[size:]
    return packets


def rows_of(packets: list[mqtt5.PublishPacket]) -> list[Row]:
    receipt = Receipt(RULES, ReceiptClock(lambda: datetime.fromtimestamp(NOW_MS / 1000, UTC)))
    decoded = [decode(packet.topic, packet.payload, receipt) for packet in packets]
    assert not any(each.rejections for each in decoded)
    return [row for each in decoded for row in each.rows]


def test_the_packets_are_readings_of_meters_and_vehicles_in_turn() -> None:
    buffer, count = Fleet(200).take(50, 0, NOW_MS)
    packets = packets_of(buffer)
    assert count == len(packets) == 50
    assert all(packet.qos == mqtt5.QoS.AT_LEAST_ONCE for packet in packets)
    assert [packet.packet_id for packet in packets] == list(range(1, 51))
    assert [packet.topic.partition("/")[0] for packet in packets] == ["meters", "vehicles"] * 25
    for packet, row in zip(packets, rows_of(packets), strict=True):
        form = METER_FORM if packet.topic.startswith("meters") else VEHICLE_FORM
        assert all(least <= value <= most for value, (least, most) in zip(row[2:-2], form.ranges.values(), strict=True))


def test_values_differ_from_one_reading_to_the_next() -> None:
    buffer, _ = Fleet(2_000).take(2_000, 0, NOW_MS)
    meters = [row for row in rows_of(packets_of(buffer)) if row[0].startswith("m")]
    assert len({row[2] for row in meters}) > 900
    assert len({row[3] for row in meters}) > 200


def test_each_device_sends_once_a_round_and_no_key_comes_twice() -> None:
    fleet, keys, orders = Fleet(20), Counter[tuple[str, datetime]](), []
    for _ in range(50):
        rows: list[Row] = []
        while len(rows) < 20:
            rows += rows_of(packets_of(fleet.take(6, 0, NOW_MS)[0]))
        orders.append(tuple(row[0] for row in rows))
        assert len(set(orders[-1])) == 20
        keys.update((row[0], row[1]) for row in rows)
    assert len(keys) == 20 * 50
    assert len(set(orders)) == 50


def test_a_time_is_that_of_now_once_the_clock_has_gone_on() -> None:
    fleet = Fleet(2)
    for n in range(3):
        rows = rows_of(packets_of(fleet.take(2, 0, NOW_MS + 10 * n)[0]))
        assert {row[1] for row in rows} == {datetime.fromtimestamp((NOW_MS + 10 * n) / 1000, UTC)}


def test_packet_ids_go_round_and_none_is_zero() -> None:
    packets = packets_of(Fleet(20).take(8, PACKET_IDS - 4, NOW_MS)[0])
    assert [packet.packet_id for packet in packets] == [PACKET_IDS - 3 + n for n in range(4)] + [1, 2, 3, 4]


@pytest.mark.parametrize("devices", [0, 3, 2 * 10**7 + 2])
def test_a_fleet_that_cannot_be_halved_or_numbered_is_refused(devices: int) -> None:
    with pytest.raises(ValueError, match="cannot be halved"):
        Fleet(devices)


@pytest.mark.parametrize(
    ("answers", "acknowledged", "is_refused"),
    [
        ([b"\x40\x02\0\x01", b"\x40\x02\0\x02\x40\x02\0\x03"], 3, False),
        ([b"\x40\x02\0", b"\x01\x40", b"\x02\0\x02"], 2, False),
        ([b"\x40\x03\0\x01\x10"], 1, True),
        ([b"\xe0\x02\x8d\0"], 1, True),
    ],
    ids=["acknowledgements", "in pieces", "no subscriber", "a good-bye"],
)
def test_answers_of_the_broker_are_counted_and_others_noticed(
    answers: list[bytes], acknowledged: int, is_refused: bool
) -> None:
    link = Link(asyncio.Event(), "test")
    link.data_received(mqtt5.ConnAckPacket().write())
    for answer in answers:
        link.data_received(answer)
    assert (link.acknowledged, link.fault is not None) == (acknowledged, is_refused)


# Statistics and the plan.


def test_a_spread_is_of_the_median_and_the_ends() -> None:
    assert spread_of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)
    assert spread_of([]) is None


@pytest.mark.parametrize(("share", "value"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)])
def test_a_quantile_is_what_its_share_does_not_exceed(share: float, value: float) -> None:
    assert quantile([float(n) for n in range(1, 101)], share) == value


def test_a_ratio_compares_within_a_run() -> None:
    fast, slow = Step("sustained", "10000"), Step("rivals", "aiomqtt, batches")
    results = recorded(
        *(Record(fast, run, Measured({"stored_per_s": rate})) for run, rate in ((1, 100.0), (2, 300.0), (3, 500.0))),
        *(Record(slow, run, Measured({"stored_per_s": rate})) for run, rate in ((1, 10.0), (2, 100.0))),
    )
    assert results.ratio(fast, slow, "stored_per_s") == Spread(6.5, 3.0, 10.0)


def test_a_plan_measures_all_parts_or_those_it_is_told() -> None:
    assert tuple(PARTS) == PART_NAMES
    assert {step.part for step in steps(Plan())} == set(PARTS)
    assert [step.part for step in steps(Plan(only=("drain",)))] == ["drain"]
    assert sum(seconds_of(QUICK, step) for step in steps(QUICK)) < 10 * 60


def test_the_command_line_changes_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []

    async def remember(folder: Path, plan: Plan, out: Path) -> int:
        plans.append(plan)
        return 0

    monkeypatch.setattr("dev.bench.run.bench", remember)
    for arguments in ("--quick", "--devices 2000 4000 --only drain ceiling --runs 5 --seconds 7"):
        monkeypatch.setattr("sys.argv", ["dev", "bench", *arguments.split()])
        assert command_line.main() == 0
    assert plans == [QUICK, Plan(devices=(2000, 4000), only=("drain", "ceiling"), runs=5, seconds=7)]


@pytest.mark.parametrize("arguments", ["--devices 3", "--runs 0", "--only everything"])
def test_the_command_line_refuses_what_makes_no_sense(
    arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["dev", "bench", *arguments.split()])
    with pytest.raises(SystemExit):
        command_line.main()
    assert arguments.split()[1] in capsys.readouterr().err


# Page and plot.


def recorded(*records: Record) -> Results:
    return Results({"processor": "a clock", "cores": "2", "memory": "1 GiB"}, {}, {}, Plan(), list(records))


def of_everything() -> Results:
    """Two runs of each step, with one figure of each kind."""
    cpu = {"cpu_us daemon": 8.0, "cpu_us broker": 4.0, "cpu_us client": 9.0, "cpu_us generator": 1.0}
    times = {"p50_ms": 10.0, "p99_ms": 20.0, "max_ms": 30.0}
    records = [
        Record(
            step, run, Measured({"stored_per_s": 1000.0 * run, **times, **cpu}, [Check("rows of the history", 5, 5)])
        )
        for step in steps(Plan())
        for run in (1, 2)
    ]
    return recorded(*records)


def test_the_page_tells_of_every_part_and_what_was_checked(tmp_path: Path) -> None:
    results = of_everything()
    write_page(results, tmp_path)
    page = (tmp_path / "benchmark.md").read_text(encoding="utf-8")
    for step in steps(Plan()):
        assert f"| {int(step.name):,} |" in page if step.name.isdecimal() else f"| {step.name} |" in page
    assert "| 10,000 | 1,500 (1,000 to 2,000) |" in page
    assert "| aiomqtt, batches | 1.0 |" in page
    assert f"All {len(results.records)} checks hold" in page


def test_the_page_leaves_out_what_was_not_measured_and_tells_what_does_not_hold(tmp_path: Path) -> None:
    wrong = Check("rows of the history", 1000, 999)
    write_page(recorded(Record(Step("drain", "1000"), 1, Measured({"stored_per_s": 5.0}, [wrong]))), tmp_path)
    page = (tmp_path / "benchmark.md").read_text(encoding="utf-8")
    assert "Latency" not in page
    assert "run 1, drain, 1,000: rows of the history: 999 instead of 1,000" in page


def test_the_plot_is_drawn_in_both_forms_and_has_no_date(tmp_path: Path) -> None:
    write_plot(of_everything(), tmp_path)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "<svg" in drawn
    assert "dc:date" not in drawn


# Against the real thing.


@pytest.fixture
async def place(
    tmp_path: Path, postgres: PrivatePostgres, broker: PrivateBroker, database_url: str
) -> AsyncIterator[Bed]:
    """Where the bench measures, on the tests' database server."""
    house = House(tmp_path, broker, database_url)
    house.start()
    connection = await asyncpg.connect(database_url)
    metrics_url = f"http://127.0.0.1:{house.metrics_port}"
    yield Bed(postgres, broker, house.daemon, database_url, metrics_url, tmp_path, connection)
    await connection.close()
    house.daemon.stop()


@pytest.mark.parametrize("step", steps(TINY), ids=lambda step: f"{step.part} {step.name}")
async def test_each_step_measures_and_finds_all_that_was_published(step: Step, place: Bed) -> None:
    measured = await PARTS[step.part].measure(place, step.name, TINY, silent)
    assert measured.checks
    assert [check for check in measured.checks if not check.holds] == []
    rate = measured.values["published_per_s" if step.part == "latency" else "stored_per_s"]
    assert rate > 0
    if step.part == "latency":  # what looks on would be in the CPU
        assert 0 < measured.values["p50_ms"] <= measured.values["p99_ms"] <= measured.values["max_ms"]
    else:
        assert measured.values["cpu_us broker" if step.name == "broker" else "cpu_us PostgreSQL"] > 0


async def test_the_bench_goes_on_where_a_step_fails_and_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dev.bench.rivals.RIVALS", {"broken": "no_such_module"})
    assert await bench(tmp_path / "stack", Plan(runs=1, only=("rivals",)), tmp_path / "out") == 1
    page = (tmp_path / "out" / "benchmark.md").read_text(encoding="utf-8")
    results = msgspec.json.decode((tmp_path / "out" / "results.json").read_bytes(), type=Results)
    assert "No module named dev.bench.no_such_module" in results.records[0].measured.checks[0].what
    assert "1 of 1 checks do not hold" in page
    assert f"| PostgreSQL | {results.versions['PostgreSQL']} |" in page
    assert "run 1: rivals, broken" in capsys.readouterr().out


async def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    async with working("generator", LoadOptions(port=1, devices=3), LoadCounts(), tmp_path) as worker:
        with pytest.raises(WorkerError, match="3 devices cannot be halved"):
            await worker.end()
