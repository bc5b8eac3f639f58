"""A table that grows on the terminal while a load runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..sender import Outcome
from .plan import LoadPlan
from .result import ALL

TICKS = 4
"""Calls between two drawings, a second together. Drawing takes 0.5 ms, in which no answer is read: in 0.05 % of the
time. A table of rich's own takes 8 ms, which would be seen in the p99."""
_BUCKETS = 100
"""Of latencies by e: each is 1 % wide."""


@dataclass(slots=True)
class Tally:
    """Counts of one kind so far, and its latencies in buckets of 1 %."""

    done: int = 0
    failed: int = 0
    buckets: Counter[int] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count an answer; failed ones have no latency."""
        self.done += 1
        if outcome.ok:
            self.buckets[round(_BUCKETS * math.log(max(outcome.latency, 1e-9)))] += 1
        else:
            self.failed += 1

    def percentile(self, share: float) -> float:
        """Seconds, to 1 %; NaN for none."""
        left = share / 100 * sum(self.buckets.values())
        for bucket in sorted(self.buckets):
            left -= self.buckets[bucket]
            if left <= 1e-9:
                return math.exp(bucket / _BUCKETS)
        return math.nan


class LiveTable:
    """Requests sent, open, done and failed, and percentiles so far without the warm-up; a context manager.

    Shows nothing where the console is no terminal.
    """

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._shown = console.is_terminal
        self._plan = LoadPlan()
        self._kinds: tuple[str, ...] = ()
        self._title = ""
        self._tallies: list[Tally] = []
        self._seen = self._ticks = 0

    def __enter__(self) -> Self:
        if self._shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def start(self, plan: LoadPlan, kinds: Sequence[str], title: str) -> None:
        """Begin with the next load. kinds: names, in the order of the outcomes' `kind`."""
        self._plan, self._kinds, self._title = plan, tuple(kinds), title
        self._tallies = [Tally() for _ in (*kinds, ALL)]
        self._seen = self._ticks = 0

    def update(self, sent: int, done: Sequence[Outcome]) -> None:
        """Count what was answered since the last time, and draw if it is time to."""
        for outcome in done[self._seen :]:
            if outcome.scheduled >= self._plan.warmup:
                self._tallies[outcome.kind].add(outcome)
                self._tallies[-1].add(outcome)
        self._seen = len(done)
        self._ticks += 1
        if self._shown and self._ticks % TICKS == 1:
            self._live.update(self.table(sent), refresh=True)

    def table(self, sent: int) -> Text:
        """As it stands now. sent: requests sent so far, those of the warm-up among them."""
        names = (*self._kinds, ALL)
        width = max(map(len, names))
        lines = [
            f"{self._title}: sent {sent}, open {sent - self._seen}",
            f"{'kind':<{width}}{'done':>9}{'failed':>9}{'p50 ms':>10}{'p99 ms':>10}",
        ]
        for name, tally in zip(names, self._tallies, strict=True):
            times = (tally.percentile(50), tally.percentile(99))
            shown = "".join(f"{'-' if math.isnan(time) else f'{1e3 * time:.1f}':>10}" for time in times)
            lines.append(f"{name:<{width}}{tally.done:>9}{tally.failed:>9}{shown}")
        return Text("\n".join(lines), no_wrap=True)
