"""Prometheus metrics, in base units; a registry of their own, served on the metrics port."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, Metric

from .. import __version__
from ..config import Limits
from ..errors import StepFailed
from ..loop.engines import Engines
from ..types import Batch, Job
from .recent import Recent

SECONDS = (
    1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_MAGNITUDES = [base * 10.0**power for power in range(5) for base in (1, 2, 5)]
ENERGIES = (*(-magnitude for magnitude in reversed(_MAGNITUDES)), 0.0, *_MAGNITUDES)


class Metrics:
    """All metrics of one server, and in `recent` what the status page shows of the last minute."""

    def __init__(
        self,
        engines: Engines,
        engine: str,
        is_model: Callable[[str], bool] = lambda name: False,
        *,
        limits: Limits | None = None,
        ready: Callable[[], bool] = lambda: False,
    ) -> None:
        """is_model: whether a name that a caller gave is one of a loaded model; others do not become labels.

        ready: whether requests are taken.
        """
        self._is_model = is_model
        self._networks: dict[tuple[str, str], _NetworkMetrics] = {}
        self.recent = Recent()
        self.registry = registry = CollectorRegistry()
        self.request_seconds = self._histogram(
            "fewstep_request_seconds", "Latency of calls.", ("rpc", "model", "code"), SECONDS
        )
        self.queue_seconds = self._histogram(
            "fewstep_queue_seconds", "From arrival to the first step.", ("model",), SECONDS
        )
        self.step_seconds = self._histogram(
            "fewstep_step_seconds", "One step of a batch of at most `rows` network rows, a power of two.",
            ("model", "network", "rows"), SECONDS,
        )  # fmt: skip
        self.batch_rows = self._histogram("fewstep_batch_rows", "Network rows in a batch.", ("model", "network"), ROWS)
        self.batch_occupancy = self._histogram(
            "fewstep_batch_occupancy", "Network rows in a batch, as a share of those that it might have had.",
            ("model", "network"), SHARES,
        )  # fmt: skip
        self.padding_rows = self._counter(
            "fewstep_padding_rows", "Network rows that belonged to nobody.", ("model", "network")
        )
        self.nfe = self._counter("fewstep_nfe", "Network function evaluations (rows).", ("model",))
        self.gradient_passes = self._counter("fewstep_gradient_passes", "Gradient passes (rows).", ("model",))
        self.failed = self._counter(
            "fewstep_rows_failed",
            "Rows that became non-finite, or whose step ended with an error.",
            ("model", "reason"),
        )
        self.energy = self._histogram("fewstep_energy", "Energies returned.", ("model", "scale"), ENERGIES)
        self._gauge("fewstep_ready", "1 while requests are taken, else 0.", ready)
        self._gauge("fewstep_rows_in_flight", "Rows that hold a slot.", lambda: engines.totals().rows_in_flight)
        self._gauge("fewstep_rows_waiting", "Rows that wait for a slot.", lambda: engines.totals().rows_waiting)
        self._gauge("fewstep_bytes_waiting", "Bytes of rows that wait.", lambda: engines.totals().bytes_waiting)
        self._gauge("fewstep_requests_open", "Requests that have not ended.", lambda: engines.totals().requests_open)
        registry.register(_RowsLeft(engines))
        ProcessCollector(registry=registry)
        bounds = Gauge("fewstep_limit", "The server's bounds, by the name of their option.", ("name",),
                       registry=registry)  # fmt: skip
        for bound in fields(Limits):
            bounds.labels(bound.name).set(getattr(limits or Limits(), bound.name))
        info = Gauge("fewstep_build_info", "Versions.", ("version", "python", "engine"), registry=registry)
        info.labels(__version__, platform.python_version(), engine).set(1)

    def observe_step(self, batch: Batch, seconds: float) -> None:
        """A batch ran and was completed; called from the engine's thread, which the next batch waits for."""
        name, rows, steps = batch.model.name, batch.network_rows, batch.steps
        network = self._networks.get((name, batch.network))
        if network is None:
            # Looking a child up by its labels costs more than to observe.
            network = self._networks[name, batch.network] = _NetworkMetrics(self, name, batch.network)
        for _ in range(steps):
            network.step_seconds(rows).observe(seconds / steps)
            network.batch_rows.observe(rows)
            network.occupancy.observe(rows / max(rows, batch.limit))
        network.nfe.inc(steps * rows)
        if batch.padding:
            network.padding_rows.inc(steps * batch.padding)
        if batch.kind in ("langevin", "metropolis"):
            self.gradient_passes.labels(name).inc(steps * rows)
        for row in batch.failed:
            reason = "error" if isinstance(row.failure, StepFailed) else "non-finite"
            self.failed.labels(name, reason).inc()
        self.recent.observe_step(batch, rows, seconds)

    def observe_call(
        self, rpc: str, model: str, code: str, seconds: float, *, request_id: str = "", error: str = ""
    ) -> None:
        """A call ended. Names that no model has are counted together: a caller cannot grow the metrics."""
        self.request_seconds.labels(rpc, model if self._is_model(model) else "", code).observe(seconds)
        self.recent.observe_call(rpc, code, seconds, request_id, error)

    def observe_energies(self, model: str, scale: str, energies: Iterable[float]) -> None:
        histogram = self.energy.labels(model, scale)
        for energy in energies:
            histogram.observe(energy)

    def observe_job(self, job: Job) -> None:
        """A job ended well."""
        if job.started is not None:
            self.queue_seconds.labels(job.model.name).observe(job.started - job.arrived)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(value)


class _NetworkMetrics:
    """The metrics of one network of one model."""

    def __init__(self, metrics: Metrics, model: str, network: str) -> None:
        labels = (model, network)
        self._all_step_seconds, self._labels = metrics.step_seconds, labels
        self._step_seconds: dict[int, Histogram] = {}
        self.batch_rows = metrics.batch_rows.labels(*labels)
        self.occupancy = metrics.batch_occupancy.labels(*labels)
        self.padding_rows = metrics.padding_rows.labels(*labels)
        self.nfe = metrics.nfe.labels(model)

    def step_seconds(self, rows: int) -> Histogram:
        """The histogram of batches of about so many rows: sizes are counted together up to each power of two."""
        power = (rows - 1).bit_length()
        histogram = self._step_seconds.get(power)
        if histogram is None:
            histogram = self._all_step_seconds.labels(*self._labels, str(1 << power))
            self._step_seconds[power] = histogram
        return histogram


class _RowsLeft:
    """Rows that left, by reason, read from the batchers' own counters when scraped."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily("fewstep_rows_left", "Rows that left, by reason.", labels=("reason",))
        for reason, rows in sorted(self._engines.totals().rows_left.items()):
            family.add_metric([reason], rows)
        yield family
