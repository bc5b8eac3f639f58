"""What a soak came to: each window's figures, the first quarter of them against the last, and the report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .environment import Environment
from .footprint import WITHOUT_PROC


@dataclass(frozen=True)
class Window:
    """One window. p50, p99: seconds from the scheduled arrival. batch_rows: network rows in a batch, on average.

    busy: share of the time that a step ran. The process is looked at while requests run; NaN without /proc.
    """

    start: float
    sent: int
    failed: int
    p50: float
    p99: float
    batch_rows: float
    busy: float
    rss_mb: float
    threads: float
    descriptors: float


@dataclass(frozen=True)
class Bounds:
    """How much more the last quarter of the windows may have than the first; latencies as a ratio.

    failed: share of all requests.
    """

    rss_mb: float = 40.0
    threads: float = 4.0
    descriptors: float = 8.0
    p50: float = 1.5
    p99: float = 2.0
    failed: float = 0.001


@dataclass(frozen=True)
class Drift:
    """The last quarter's median against the first's: differences, and for p50 and p99 ratios. failed: share of all."""

    rss_mb: float
    threads: float
    descriptors: float
    p50: float
    p99: float
    failed: float

    def beyond(self, bounds: Bounds) -> list[str]:
        """What is above its bound, in words; what was not measured is not."""
        return [
            f"{name} {value:.4g}, at most {getattr(bounds, name):g} is allowed"
            for name, value in asdict(self).items()
            if value > getattr(bounds, name)
        ]


def drift_of(windows: Sequence[Window]) -> Drift:
    """Compare the first quarter of the windows with the last, of one window at least.

    Raises:
        ValueError: no windows.
    """
    if not windows:
        raise ValueError("windows: must hold at least one")
    quarter = max(1, len(windows) // 4)

    def median(name: str, part: Sequence[Window]) -> float:
        return statistics.median(getattr(window, name) for window in part)

    first, last = windows[:quarter], windows[-quarter:]
    grown = {name: median(name, last) - median(name, first) for name in ("rss_mb", "threads", "descriptors")}
    slower = {name: median(name, last) / median(name, first) for name in ("p50", "p99")}
    sent = sum(window.sent for window in windows)
    return Drift(**grown, **slower, failed=sum(window.failed for window in windows) / max(1, sent))


@dataclass(frozen=True)
class SoakResult:
    """A whole soak. load: share of the capacity. capacity, rate: requests a second. broken: beyond their bounds."""

    mix: str
    load: float
    window_seconds: float
    engine: str
    capacity: float
    rate: float
    windows: tuple[Window, ...]
    drift: Drift
    bounds: Bounds
    broken: tuple[str, ...]
    environment: Environment

    def summary(self) -> str:
        """One paragraph: the load, and the first quarter against the last."""
        drift, sent = self.drift, sum(window.sent for window in self.windows)
        minutes = len(self.windows) * self.window_seconds / 60
        holds = (
            f"memory {drift.rss_mb:+.1f} MB, threads {drift.threads:+g}, descriptors {drift.descriptors:+g}"
            if not math.isnan(drift.rss_mb)
            else WITHOUT_PROC
        )
        return (
            f"{sent} requests in {minutes:.1f} minutes at {self.rate:.1f} a second, {self.load:.0%} of"
            f" {self.capacity:.1f}; {drift.failed:.2%} failed. The last quarter against the first: {holds};"
            f" p50 {drift.p50:.2f} times, p99 {drift.p99:.2f} times."
        )

    def markdown(self) -> str:
        """The report to read."""
        rows = [
            f"| {window.start:.0f} | {window.sent} | {window.failed} | {1e3 * window.p50:.1f} | {1e3 * window.p99:.1f} "
            f"| {window.batch_rows:.1f} | {window.busy:.0%} | {window.rss_mb:.0f} | {window.threads:.0f} "
            f"| {window.descriptors:.0f} |"
            for window in self.windows
        ]
        kept = "BEYOND ITS BOUNDS" if self.broken else "within its bounds"
        return "\n".join(
            [
                f"# Soak: {kept}",
                "",
                self.summary(),
                "",
                f"{self.environment.line()}. Engine {self.engine}, mix `{self.mix}`, {self.environment.time}.",
                "",
                *(f"- {broken}" for broken in self.broken),
                *([""] if self.broken else []),
                "| from, s | sent | failed | p50, ms | p99, ms | rows a batch | busy | MB | threads | descriptors |",
                "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
                *rows,
                "",
            ]
        )
