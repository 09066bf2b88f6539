"""The service's metrics, in Prometheus text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """One registry per service. `in_flight` and `waiting` are called when the metrics are read."""

    def __init__(self, *, max_batch: int, in_flight: Callable[[], int], waiting: Callable[[], int]) -> None:
        disable_created_metrics()  # the extra "_created" series
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU seconds, open files
        self.requests = Counter(
            "bigmodel_requests", "Requests by path and status.", ("path", "code"), registry=self.registry
        )
        self.latency = Histogram(
            "bigmodel_request_seconds",
            "From the request's header to the last byte of the response.",
            ("path",),
            buckets=SECONDS,
            registry=self.registry,
        )
        sizes = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if n < max_batch]
        self.batches = Histogram(
            "bigmodel_batch_size", "Samples per run of the model.", buckets=(*sizes, max_batch), registry=self.registry
        )
        self.model = Histogram(
            "bigmodel_model_seconds", "Seconds per run of the model.", buckets=SECONDS, registry=self.registry
        )
        self.cut = Counter(
            "bigmodel_texts_cut", "Texts longer than the model's context, cut there.", registry=self.registry
        )
        for name, what, ask in (
            ("bigmodel_requests_in_work", "Requests in flight.", in_flight),
            ("bigmodel_queue_samples", "Samples waiting for the model.", waiting),
        ):
            Gauge(name, what, registry=self.registry).set_function(ask)

    def ran(self, size: int, seconds: float) -> None:
        """Record a run of the model."""
        self.batches.observe(size)
        self.model.observe(seconds)

    def texts_cut(self, count: int) -> None:
        """Record texts whose end was not read."""
        self.cut.inc(count)

    def served(self, path: str, code: int, seconds: float) -> None:
        """Record a finished request. `path` must be one of the service's own, so that the label set stays bounded."""
        self.requests.labels(path, str(code)).inc()
        self.latency.labels(path).observe(seconds)

    def text(self) -> bytes:
        return bytes(generate_latest(self.registry))
