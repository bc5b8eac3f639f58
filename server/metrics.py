"""Prometheus metrics, in base units; a registry of their own, served on the metrics port."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from . import __version__
from .loop.batcher import Batcher
from .types import Batch, Job

SECONDS = (
    1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """All metrics of one server."""

    def __init__(self, batcher: Batcher, engine: str, is_model: Callable[[str], bool] = lambda name: False) -> None:
        """is_model: whether a name that a caller gave is one of a loaded model; others do not become labels."""
        self._is_model = is_model
        self.registry = registry = CollectorRegistry()
        self._children: dict[tuple[str, str], tuple[Histogram, Histogram, Counter]] = {}
        self.request_seconds = Histogram(
            "fewstep_request_seconds", "Latency of calls.", ("rpc", "model", "code"), buckets=SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "fewstep_queue_seconds", "From admission to the first step.", ("model",), buckets=SECONDS, registry=registry
        )
        self.step_seconds = Histogram(
            "fewstep_step_seconds", "One step of a batch.", ("model", "network"), buckets=SECONDS, registry=registry
        )
        self.batch_rows = Histogram(
            "fewstep_batch_rows", "Network rows in a batch.", ("model", "network"), buckets=ROWS, registry=registry
        )
        self.nfe = Counter("fewstep_nfe", "Network function evaluations (rows).", ("model",), registry=registry)
        self.gradient_passes = Counter(
            "fewstep_gradient_passes", "Gradient passes (rows).", ("model",), registry=registry
        )
        self.diverged = Counter(
            "fewstep_rows_failed", "Rows that became non-finite or whose network failed.", ("model",), registry=registry
        )
        self.energy = Histogram(
            "fewstep_energy", "Energies returned.", ("model", "scale"),
            buckets=(-100, -50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50, 100), registry=registry,
        )  # fmt: skip
        self._gauge("fewstep_rows_in_flight", "Rows that hold a slot.", lambda: batcher.rows_in_flight)
        self._gauge("fewstep_rows_waiting", "Rows that wait for a slot.", lambda: batcher.admission.waiting_rows)
        self._gauge("fewstep_bytes_waiting", "Bytes of rows that wait.", lambda: batcher.admission.waiting_bytes)
        self._gauge("fewstep_requests_open", "Requests that have not ended.", lambda: batcher.jobs)
        registry.register(_RowsLeft(batcher))
        info = Gauge("fewstep_build_info", "Versions.", ("version", "python", "engine"), registry=registry)
        info.labels(__version__, platform.python_version(), engine).set(1)

    def observe_step(self, batch: Batch, seconds: float) -> None:
        """A batch ran; called from the engine's thread, which holds the answer up while it is here."""
        name, rows = batch.model.name, batch.network_rows
        step_seconds, batch_rows, nfe = self._step_children(name, batch.network)
        step_seconds.observe(seconds)
        batch_rows.observe(rows)
        nfe.inc(rows)
        if batch.kind == "langevin":
            self.gradient_passes.labels(name).inc(rows)
        failed = sum(row.failure is not None for row in batch.rows)
        if failed:
            self.diverged.labels(name).inc(failed)

    def _step_children(self, model: str, network: str) -> tuple[Histogram, Histogram, Counter]:
        """The metrics of one network: looking a child up by its labels costs more than to observe."""
        children = self._children.get((model, network))
        if children is None:
            labels = (model, network)
            children = (self.step_seconds.labels(*labels), self.batch_rows.labels(*labels), self.nfe.labels(model))
            self._children[labels] = children
        return children

    def observe_call(self, rpc: str, model: str, code: str, seconds: float) -> None:
        """A call ended. Names that no model has are counted together: a caller cannot grow the metrics."""
        self.request_seconds.labels(rpc, model if self._is_model(model) else "", code).observe(seconds)

    def observe_energies(self, model: str, scale: str, energies: Iterable[float]) -> None:
        histogram = self.energy.labels(model, scale)
        for energy in energies:
            histogram.observe(energy)

    def observe_job(self, job: Job) -> None:
        """A job ended well."""
        if job.started is not None:
            self.queue_seconds.labels(job.model.name).observe(job.started - job.arrived)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(value)


class _RowsLeft:
    """Rows that left, by reason, read from the batcher's own counters when scraped."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def collect(self):  # type: ignore[no-untyped-def]
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily("fewstep_rows_left", "Rows that left, by reason.", labels=("reason",))
        for reason, rows in sorted(self._batcher.counters.rows_left.items()):
            family.add_metric([reason], rows)
        yield family
