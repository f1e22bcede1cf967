"""What the daemon tells Prometheus. docs/operations.md lists every name; a test holds that it does."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.accounts import Accounts
from daemon.batch import Batch

_LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_BATCH_BUCKETS = (1, 10, 100, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)


class Metrics:
    """All of the daemon's metrics, in a registry of their own."""

    def __init__(self, accounts: Accounts, oldest_age_s: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_AccountsCollector(accounts))
        self._batch_readings = self._histogram("batch_readings", "Readings in a batch", _BATCH_BUCKETS)
        self._batch_store_seconds = self._histogram(
            "batch_store_seconds", "From the start of writing a batch to its commit", _LATENCY_BUCKETS_S
        )
        self._receipt_to_commit_seconds = self._histogram(
            "receipt_to_commit_seconds",
            "From the receipt of a batch's oldest reading to its commit",
            _LATENCY_BUCKETS_S,
        )
        self._last_commit = self._gauge("last_commit_timestamp_seconds", "Unix time of the last commit")
        self._gauge(
            "oldest_in_flight_seconds", "For how long the oldest reading in flight has been waiting"
        ).set_function(oldest_age_s)
        self._spool_bytes = self._gauge("spool_bytes", "What the spool takes on the disk")
        self._spool_oldest = self._gauge(
            "spool_oldest_seconds", "For how long the oldest batch in the spool has been there"
        )
        self._rejections_not_kept = self._counter(
            "rejections_not_kept_total", "Rejected readings of a flood, which were counted and not kept", "reason"
        )
        self._slow_batches = self._counter(
            "slow_batches_total", "Batches of a kind that COPY did not store", "kind", "sqlstate"
        )
        self._database_errors = self._counter("database_errors_total", "Errors on the slow way", "sqlstate")
        self.messages_received = self._counter("messages_received_total", "MQTT messages received")
        self.messages_acknowledged = self._counter("messages_acknowledged_total", "MQTT messages acknowledged")
        self.mqtt_subscribed = self._gauge("mqtt_subscribed", "1 while connected to the broker and subscribed")
        self.mqtt_connections = self._counter("mqtt_connections_total", "Connections to the broker that were accepted")
        self.mqtt_disconnections = self._counter(
            "mqtt_disconnections_total", "Connections to the broker that were lost"
        )
        self._rollup_lag = self._gauge(
            "rollup_lag_seconds", "How far the rollups are behind the last full hour, when last looked at", "kind"
        )
        self._rollup_late = self._gauge(
            "rollup_late_hours", "Marks of late readings that wait to be rolled up, when last looked at", "kind"
        )
        self.partitions_dropped = self._counter("partitions_dropped_total", "Days of history dropped by retention")
        self.rejections_purged = self._counter("rejections_purged_total", "Rejections deleted by retention")

    def slow_batch(self, kind: str, sqlstate: str) -> None:
        """COPY did not store a batch's readings of this kind."""
        self._slow_batches.labels(kind, sqlstate).inc()

    def database_error(self, sqlstate: str) -> None:
        """A try on the slow way failed."""
        self._database_errors.labels(sqlstate).inc()

    def batch_settled(self, batch: Batch, started_at_s: float, committed_at_s: float) -> None:
        """A batch was committed; the times are of the monotonic clock."""
        self._batch_readings.observe(batch.readings)
        self._batch_store_seconds.observe(committed_at_s - started_at_s)
        self._receipt_to_commit_seconds.observe(committed_at_s - batch.opened_at_s)

    def rejections_not_kept(self, reason: str, count: int) -> None:
        """That many rejections of a flood were counted only."""
        self._rejections_not_kept.labels(reason).inc(count)

    def rollup_lag(self, kind: str, lag_s: float) -> None:
        """The rollups of that kind of device are so far behind."""
        self._rollup_lag.labels(kind).set(lag_s)

    def rollup_late(self, kind: str, marks: int) -> None:
        """So many marks of late readings wait."""
        self._rollup_late.labels(kind).set(marks)

    def watch_commits(self, last_commit_at_s: Callable[[], float]) -> None:
        """Export the Unix time of the last commit, from the spool or not."""
        self._last_commit.set_function(last_commit_at_s)

    def watch_spool(self, bytes_taken: Callable[[], int], oldest_age_s: Callable[[], float]) -> None:
        """Export the spool's size and age; without a spool both are 0."""
        self._spool_bytes.set_function(bytes_taken)
        self._spool_oldest.set_function(oldest_age_s)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"fleetwatt_{name}", help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"fleetwatt_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"fleetwatt_{name}", help_text, buckets=buckets, registry=self.registry)


class _AccountsCollector(Collector):
    """The books, read in one synchronous step, so that the identity holds in every scrape."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def collect(self) -> Iterator[Metric]:
        books = self._accounts
        yield CounterMetricFamily("fleetwatt_readings_received", "Readings that arrived", value=books.received)
        yield _by("kind", "fleetwatt_readings_stored", "Readings stored", books.stored)
        yield _by("kind", "fleetwatt_readings_duplicate", "Readings that were stored already", books.duplicate)
        yield _by("reason", "fleetwatt_readings_rejected", "Readings rejected; kept up to a rate", books.rejected)
        yield GaugeMetricFamily("fleetwatt_readings_spooled", "Readings in the spool", value=books.spooled)
        yield GaugeMetricFamily("fleetwatt_readings_in_flight", "Readings on their way", value=books.in_flight)
        yield GaugeMetricFamily(
            "fleetwatt_readings_recovered", "Of those received, in the spool at the start", value=books.recovered
        )
        yield GaugeMetricFamily(
            "fleetwatt_readings_unaccounted", "Received less all of the above; zero, or a bug", value=books.unaccounted
        )


def _by(label: str, name: str, help_text: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, help_text, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family
