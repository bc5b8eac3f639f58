"""What a comparison found: every round's numbers, their medians, and the ratios that the goals are set for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bench.environment import Environment
from bench.peers.registry import FEWSTEP, REQUEST_LEVEL

from .scenarios import BARE, DIFFUSERS, NATIVE, Numbers

OURS = (FEWSTEP, REQUEST_LEVEL, NATIVE)
LOOPS = (BARE, DIFFUSERS)
UNBATCHED = "grpc"
KEEPS_UP = 0.95
"""Of what was offered a server must have answered, to count as having had the load."""


Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One server or loop in one round of one scenario."""

    scenario: str
    server: str
    round: int
    numbers: Numbers


@dataclass(frozen=True, slots=True)
class Spread:
    """A number over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Goal:
    """What a ratio must be. at_most: else at least."""

    bound: float
    at_most: bool

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Ratio:
    """A number that goals are set for: the median over the rounds of what each round gives by itself.

    better: which direction is the good one for fewstep; neither where it is of another server alone.
    """

    name: str
    value: float
    low: float
    high: float
    better: Better
    goal: Goal | None = None

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.goal.met(self.value)


@dataclass(frozen=True, slots=True)
class Setup:
    """What was compared, and how.

    titles: of servers and loops, by name. versions: by name. left_out: why a peer is not there, by name.
    settings: of each scenario, found before its rounds. note: what a reader has to know of the machine.
    """

    titles: Mapping[str, str]
    versions: Mapping[str, str]
    left_out: Mapping[str, str]
    scenarios: Mapping[str, str]
    settings: Mapping[str, Mapping[str, float]]
    plan: Mapping[str, float]
    threads: int
    note: str = (
        "The client runs on the same cores as the server under test and takes its share of them; servers that are not"
        " measured are held still."
    )


@dataclass(frozen=True)
class Comparison:
    """The whole run."""

    setup: Setup
    environment: Environment
    measurements: tuple[Measurement, ...] = field(default=())

    def rounds(self, scenario: str, server: str, number: str) -> list[float]:
        """A number in the order of the rounds."""
        return [
            m.numbers[number]
            for m in self.measurements
            if (m.scenario, m.server) == (scenario, server) and number in m.numbers
        ]

    def servers(self, scenario: str) -> list[str]:
        """Whoever was measured in a scenario, in the order of the setup."""
        seen = {m.server for m in self.measurements if m.scenario == scenario}
        return [name for name in self.setup.titles if name in seen]

    def numbers(self, scenario: str) -> list[str]:
        """What was measured in a scenario, in the order in which it came."""
        found = [number for m in self.measurements if m.scenario == scenario for number in m.numbers]
        return list(dict.fromkeys(found))

    def spread(self, scenario: str, server: str, number: str) -> Spread | None:
        """A number over the rounds; None where it was not measured."""
        values = self.rounds(scenario, server, number)
        return Spread.of(values) if values else None

    def ratios(self) -> list[Ratio]:
        """All ratios that the measurements allow, those with a goal among them."""
        return [*self._added_latency(), *self._saturation(), *self._interactive(), *self._overload()]

    def document(self) -> dict[str, Any]:
        """As it is written to compare.json; what is not finite is null there."""
        ratios = self.ratios()
        document = {
            "environment": asdict(self.environment),
            "setup": asdict(self.setup),
            "ratios": {ratio.name: ratio.value for ratio in ratios},
            "better": {ratio.name: ratio.better for ratio in ratios},
            "spreads": {ratio.name: [ratio.low, ratio.high] for ratio in ratios},
            "goals": {ratio.name: {"goal": str(ratio.goal), "met": ratio.met} for ratio in ratios if ratio.goal},
            "medians": {
                scenario: {
                    server: {
                        number: asdict(spread)
                        for number in self.numbers(scenario)
                        if (spread := self.spread(scenario, server, number)) is not None
                    }
                    for server in self.servers(scenario)
                }
                for scenario in self.setup.scenarios
            },
            "rounds": [asdict(measurement) for measurement in self.measurements],
        }
        return _finite(document)

    # -- ratios by scenario -----------------------------------------------------------------------

    def _added_latency(self) -> Iterator[Ratio]:
        """(a) In milliseconds for what fewstep adds to the engine, and as a ratio to what each peer adds."""
        for way in ("paced", "busy"):
            for share in ("p50", "p90"):
                number = f"{way}_{share}"
                bare = self.rounds("idle", BARE, number)
                added = {
                    name: [a - b for a, b in zip(self.rounds("idle", name, number), bare, strict=False)]
                    for name in self.servers("idle")
                    if name not in LOOPS
                }
                for name in OURS:
                    if added.get(name):
                        goal = Goal(0.6, at_most=True) if share == "p50" and name == FEWSTEP else None
                        milliseconds = [1e3 * value for value in added[name]]
                        yield _ratio(f"idle {way}: {name} adds, ms at {share}", milliseconds, "lower", goal)
                for name, theirs in added.items():
                    if name not in OURS and FEWSTEP in added and share == "p50":
                        goal = Goal(0.35, at_most=True) if name == "triton" else None
                        yield _ratio(f"idle {way}: fewstep / {name}", _divide(added[FEWSTEP], theirs), "lower", goal)

    def _saturation(self) -> Iterator[Ratio]:
        """(b, c) Samples a second, of the bare loop's and of each peer's."""
        for scenario in ("small", "bulk", "large"):
            ours = self.rounds(scenario, FEWSTEP, "rows_per_second")
            for name in self.servers(scenario):
                if not ours or name == FEWSTEP:
                    continue
                goal = None
                if name == BARE:
                    goal = Goal(0.97 if scenario == "large" else 0.8, at_most=False)
                elif scenario == "small" and name not in (*OURS, *LOOPS):
                    # Not of requests of many samples: there whoever batches is near the loop, and nobody is twice that.
                    goal = Goal(2.0, at_most=False)
                theirs = self.rounds(scenario, name, "rows_per_second")
                yield _ratio(f"{scenario}: fewstep / {name}", _divide(ours, theirs), "higher", goal)

    def _interactive(self) -> Iterator[Ratio]:
        """(d, e, g) The tail of the calls that matter, of each peer's that kept up with the load."""
        for scenario in ("interactive", "scoring", "langevin"):
            numbers = [number for number in self.numbers(scenario) if number.endswith("p99")]
            if not numbers:
                continue
            ours = self.rounds(scenario, FEWSTEP, numbers[0])
            kept_up = {}
            for name in self.servers(scenario):
                if name == FEWSTEP or not ours:
                    continue
                theirs = self.rounds(scenario, name, numbers[0])
                yield _ratio(f"{scenario}: p99 fewstep / {name}", _divide(ours, theirs), "lower")
                if name != UNBATCHED and self.keeps_up(scenario, name):
                    kept_up[name] = theirs
            if kept_up:
                best = min(kept_up, key=lambda name: statistics.median(kept_up[name]))
                goal = Goal(0.25, at_most=True) if scenario == "interactive" else None
                name = f"{scenario}: p99 fewstep / best request-level batcher"
                yield _ratio(name, _divide(ours, kept_up[best]), "lower", goal)

    def keeps_up(self, scenario: str, server: str) -> bool:
        """Whether a server answered what it was offered, so that its latencies are of the same load as the others'."""
        offered, achieved = self.spread(scenario, server, "offered"), self.spread(scenario, server, "achieved")
        return offered is not None and achieved is not None and achieved.median >= KEEPS_UP * offered.median

    def _overload(self) -> Iterator[Ratio]:
        """(f) What is answered in time at three times the capacity, of the most that is answered in time."""
        for name in self.servers("overload"):
            goal = Goal(0.9, at_most=False) if name == FEWSTEP else None
            shares = self.rounds("overload", name, "share")
            better: Better = "higher" if name == FEWSTEP else "neither"
            yield _ratio(f"overload: {name}, goodput of its peak", shares, better, goal)


def _ratio(name: str, values: Sequence[float], better: Better, goal: Goal | None = None) -> Ratio:
    spread = Spread.of([value for value in values if not math.isnan(value)] or [math.nan])
    return Ratio(name, spread.median, spread.low, spread.high, better, goal)


def _divide(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round; a server that answered nothing has no ratio that says anything."""
    return [a / b if b else math.nan for a, b in zip(ours, theirs, strict=False)]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
