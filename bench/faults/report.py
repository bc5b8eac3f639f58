"""What a campaign came to: bounds on growth, the JSON document, the Markdown report, the lines on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.environment import Environment
from bench.footprint import WITHOUT_PROC, Footprint

from .campaign import PhaseResult
from .verdicts import Broken

PROMISES = ("lost", "hung", "wrong", "code", "idle", "growth", "stop")
MOST_SHOWN = 20


@dataclass(frozen=True)
class Bounds:
    """How much a server may hold more at the end than after its warm-up.

    What it holds does not depend on the number of requests: the allocator's slack, which goes up and down by tens of
    megabytes as models are loaded and dropped, and what gRPC keeps of the connections that there were.
    """

    rss_mb: float = 80.0
    threads: int = 8
    descriptors: int = 8

    def grown(self, start: Footprint, end: Footprint) -> list[Broken]:
        """What grew beyond its bound."""
        growth = {
            "rss_mb": end.rss_mb - start.rss_mb,
            "threads": end.threads - start.threads,
            "descriptors": end.descriptors - start.descriptors,
        }
        return [
            Broken("growth", f"{name} grew by {value:.4g}, at most {getattr(self, name):g} is allowed")
            for name, value in growth.items()
            if value > getattr(self, name)
        ]


@dataclass(frozen=True)
class Report:
    """A whole campaign. holds: the server's process after the warm-up, after each phase, and at the end."""

    requests: int
    seed: int
    engine: str
    oracle_seconds: float
    seconds: float
    phases: tuple[PhaseResult, ...]
    start: Footprint | None
    end: Footprint | None
    broken: tuple[Broken, ...]
    environment: Environment

    @property
    def sent(self) -> int:
        """All requests, those of the warm-up, of the keeper and of the stop included."""
        return sum(phase.requests for phase in self.phases)

    @property
    def checked(self) -> int:
        """Requests whose answers were compared with the offline result."""
        return sum(phase.checked for phase in self.phases)

    def document(self) -> dict[str, Any]:
        """What is written as JSON."""
        totals = {"sent": self.sent, "checked": self.checked, "broken_by_promise": self.by_promise()}
        return totals | asdict(self)

    def by_promise(self) -> dict[str, int]:
        """How often each promise was broken."""
        counted = Counter(broken.promise for broken in self.broken)
        return {promise: counted[promise] for promise in PROMISES}

    def summary(self) -> str:
        """One paragraph: what was sent, what was broken, what the server holds."""
        broken = ", ".join(f"{count} {promise}" for promise, count in self.by_promise().items())
        return (
            f"{self.sent} requests in {self.seconds:.0f} s, {self.checked} of them answered and compared with their"
            f" offline result: {broken}. {self._holds()}"
        )

    def _holds(self) -> str:
        if self.start is None or self.end is None:
            return WITHOUT_PROC[0].upper() + WITHOUT_PROC[1:] + "."
        return (
            f"Memory {self.start.rss_mb:.0f} MB after the warm-up, {self.end.rss_mb:.0f} MB at the end;"
            f" threads {self.start.threads} and {self.end.threads};"
            f" descriptors {self.start.descriptors} and {self.end.descriptors}."
        )

    def markdown(self) -> str:
        """The report to read."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield f"# Fault campaign, {self.sent} requests: {'kept' if not self.broken else 'BROKEN'}"
        yield ""
        yield self.summary()
        yield ""
        yield f"{self.environment.line()}. Engine {self.engine}, seed {self.seed}, {self.environment.time}."
        yield from ("", "| phase | requests | compared | s | slowest, s | idle after, s | MB | threads | descriptors |")
        yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
        for phase in self.phases:
            held = phase.holds
            holds = (f"{held.rss_mb:.0f}", f"{held.threads}", f"{held.descriptors}") if held else ("", "", "")
            numbers = (f"{phase.seconds:.1f}", f"{phase.slowest_seconds:.2f}", f"{phase.idle_seconds:.2f}")
            yield "| " + " | ".join((phase.name, f"{phase.requests}", f"{phase.checked}", *numbers, *holds)) + " |"
        yield from ("", "| kind | endings |", "| --- | --- |")
        for kind, codes in sorted(self._codes().items()):
            yield f"| {kind} | {', '.join(f'{code} {count}' for code, count in codes.most_common())} |"
        yield from ("", "The slowest request of each phase:", "")
        yield from (f"- {phase.slowest_seconds:.2f} s {phase.slowest}" for phase in self.phases)
        if self.broken:
            yield from ("", "## Broken promises", "")
            yield from (f"- {broken.promise}: {broken.what}" for broken in self.broken[:MOST_SHOWN])
            if len(self.broken) > MOST_SHOWN:
                yield f"- and {len(self.broken) - MOST_SHOWN} more, in faults.json"

    def _codes(self) -> dict[str, Counter[str]]:
        counted: dict[str, Counter[str]] = {}
        for phase in self.phases:
            for kind, codes in phase.codes.items():
                counted.setdefault(kind, Counter()).update(codes)
        return counted


def all_broken(phases: Sequence[PhaseResult]) -> list[Broken]:
    """What the phases broke, in their order."""
    return [broken for phase in phases for broken in phase.broken]
