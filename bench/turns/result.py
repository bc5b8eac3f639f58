"""What turns came to: every turn, and at each load the ratios of this side to the other, round by round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..environment import Environment

MEASURES = ("answered", "p50", "p99")
"""Answers a second within the time measured, and seconds from the scheduled arrival to the answer."""


@dataclass(frozen=True)
class Side:
    """A server that takes turns. commit: of its checkout. options: of its command line."""

    name: str
    commit: str
    options: tuple[str, ...]

    def line(self) -> str:
        """In one line."""
        commit, dirty, _ = self.commit.partition("-dirty")
        options = f" `{' '.join(self.options)}`" if self.options else ""
        return f"{self.name}: commit {commit[:10]}{dirty}{options}"


@dataclass(frozen=True)
class Turn:
    """One turn. load: as its report names it. round: from 0. errors: by code."""

    load: str
    round: int
    side: str
    offered: float
    answered: float
    p50: float
    p99: float
    errors: dict[str, int]


@dataclass(frozen=True)
class Ratio:
    """This side's measure over the other's of the same round: the median of the rounds, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        """Rounds without a number, e.g. as nothing was answered, are left out."""
        found = [ratio for ratio in ratios if math.isfinite(ratio)]
        if not found:
            return cls(math.nan, math.nan, math.nan)
        return cls(statistics.median(found), min(found), max(found))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


@dataclass(frozen=True)
class TurnsResult:
    """A whole measurement. sides: this one and the other. seconds: of one turn, without its warm-up. timeout: seconds
    that a request may take."""

    sides: tuple[Side, Side]
    mix: str
    rounds: int
    seconds: float
    timeout: float
    turns: tuple[Turn, ...]
    environment: Environment

    @property
    def loads(self) -> list[str]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(turn.load for turn in self.turns))

    def of(self, load: str, side: Side, measure: str) -> list[float]:
        """A measure of each round."""
        found = [turn for turn in self.turns if (turn.load, turn.side) == (load, side.name)]
        return [getattr(turn, measure) for turn in sorted(found, key=lambda turn: turn.round)]

    def ratio(self, load: str, measure: str) -> Ratio:
        """Of this side to the other."""
        this, other = (self.of(load, side, measure) for side in self.sides)
        return Ratio.of([a / b if b else math.nan for a, b in zip(this, other, strict=True)])

    def table(self) -> list[tuple[str, ...]]:
        """A header, and for each load the medians of both sides and the ratio, measure by measure."""
        this, other = self.sides
        lines: list[tuple[str, ...]] = [("load", "measure", this.name, other.name, "ratio, round by round")]
        for load in self.loads:
            for measure in MEASURES:
                each = [statistics.median(self.of(load, side, measure)) for side in self.sides]
                unit, scale = ("/s", 1.0) if measure == "answered" else (" ms", 1e3)
                shown = [f"{scale * value:.4g}{unit}" for value in each]
                lines.append((load, measure, *shown, str(self.ratio(load, measure))))
        return lines

    def markdown(self) -> str:
        """The report to read."""
        header, *lines = self.table()
        rounds = [
            f"| {turn.load} | {turn.round + 1} | {turn.side} | {turn.offered:.1f} | {turn.answered:.1f} "
            f"| {1e3 * turn.p50:.2f} | {1e3 * turn.p99:.2f} | {_errors(turn.errors)} |"
            for turn in self.turns
        ]
        return "\n".join(
            [
                "# In turns",
                "",
                f"{self.sides[0].line()}; {self.sides[1].line()}. {self.rounds} rounds of {self.seconds:g} s, the one "
                "that is not measured held, who begins changing from round to round.",
                "",
                f"{self.environment.line()}. Mix `{self.mix}`, {self.timeout:g} s a request, {self.environment.time}.",
                "",
                f"| {' | '.join(header)} |",
                f"|{' --- |' * len(header)}",
                *(f"| {' | '.join(line)} |" for line in lines),
                "",
                "| load | round | side | offered/s | answered/s | p50, ms | p99, ms | errors |",
                "| --- | --- | --- | --- | --- | --- | --- | --- |",
                *rounds,
                "",
            ]
        )


def _errors(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {code}" for code, count in errors.items()) or "none"
