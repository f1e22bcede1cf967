"""What the sidecar tells Prometheus. docs/http.md lists every name."""

from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Metrics:
    """All of the sidecar's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = self._counter("http_requests_total", "Requests answered", "method", "route", "status")
        self._seconds = Histogram(
            "fleetwatt_http_request_seconds",
            "From the head of a request to the end of its answer",
            ["method", "route"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "fleetwatt_http_requests_in_flight", "Requests that are being answered", registry=self.registry
        )
        self.viewers = Gauge(
            "fleetwatt_http_live_viewers", "Browsers that follow the live figures", registry=self.registry
        )
        self.looks = Counter(
            "fleetwatt_http_live_looks_total", "Looks at the live figures, for all viewers", registry=self.registry
        )
        self._cache = self._counter("http_cache_total", "Analytics asked for, by what the cache did", "result")
        self._readings = self._counter("http_readings_total", "Readings that came over HTTP", "result")
        self._rejections_not_kept = self._counter(
            "http_rejections_not_kept_total", "Rejected readings of a flood, which were counted and not kept", "reason"
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered. `route` is the template and not the path, or there would be a series per device."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def cache(self, result: str) -> None:
        """The cache was asked: `hit`, `joined` (somebody else's query was under way) or `miss`."""
        self._cache.labels(result).inc()

    def readings(self, result: str, count: int) -> None:
        """Readings were settled: `stored`, `duplicate` or `rejected`."""
        self._readings.labels(result).inc(count)

    def rejections_not_kept(self, reason: str, count: int) -> None:
        """That many rejections of a flood were counted only."""
        self._rejections_not_kept.labels(reason).inc(count)

    def watch(self, connections: Callable[[], dict[str, int]], is_up: Callable[[], bool]) -> None:
        """Report the pool and the watcher's verdict in each scrape."""
        self.registry.register(_DatabaseCollector(connections, is_up))

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"fleetwatt_{name}", help_text, labels, registry=self.registry)


class _DatabaseCollector(Collector):
    def __init__(self, connections: Callable[[], dict[str, int]], is_up: Callable[[], bool]) -> None:
        self._connections = connections
        self._is_up = is_up

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "fleetwatt_http_pool_connections", "Connections to the database, by what they do", labels=["state"]
        )
        for state, count in self._connections().items():
            family.add_metric([state], count)
        yield family
        yield GaugeMetricFamily(
            "fleetwatt_http_database_up", "1 while the database answers the watcher", value=int(self._is_up())
        )
