"""Which cases fit the time, judged by what single forwards take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.program import Program

from .cases import Case
from .loaded import Loaded

ROUNDS = 3
"""The least rounds that a case is worth; with the one before them, that warms up, it has to fit them into the time."""

WIDE = 8
SLOW = 0.5
"""Seconds of one row above which a forward of several is reckoned instead of tried."""


@dataclass(frozen=True, slots=True)
class Lot:
    """A case with one engine, and the seconds that a round of its contenders takes."""

    case: Case
    program: Program
    loaded: Loaded
    seconds: float


class Forwards:
    """Seconds of a loaded model's networks by rows: a line through what one and some rows take."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._lines: dict[str, tuple[float, float]] = {}

    def program_seconds(self, program: Program, rows: int) -> float:
        """All networks of a program's lines, one after the other."""
        counts = Counter(line.network for line in program.lines)
        return sum(count * self._seconds(network, rows) for network, count in counts.items())

    def _seconds(self, network: str, rows: int) -> float:
        if network not in self._lines:
            one = self._loaded.forward_seconds(network, 1)
            wide = WIDE * one if one > SLOW else self._loaded.forward_seconds(network, WIDE)
            slope = max(0.0, (wide - one) / (WIDE - 1))
            self._lines[network] = one - slope, slope
        fixed, slope = self._lines[network]
        return fixed + slope * rows


def lots_of(cases: Sequence[Case], programs: Mapping[Case, Program], engines: Sequence[Loaded]) -> list[Lot]:
    """Every case with every engine."""
    forwards = [(loaded, Forwards(loaded)) for loaded in engines]
    return [
        Lot(case, programs[case], loaded, len(loaded.contenders) * forward.program_seconds(programs[case], case.rows))
        for case in cases
        for loaded, forward in forwards
    ]


def fitting(lots: Sequence[Lot], seconds: float) -> tuple[list[Lot], list[Lot]]:
    """The lots that fit `ROUNDS` times and once more, and those that do not: the longest ones go first."""
    kept, left = list(lots), []
    while kept and (ROUNDS + 1) * sum(lot.seconds for lot in kept) > seconds:
        longest = max(kept, key=lambda lot: lot.seconds)
        kept.remove(longest)
        left.append(longest)
    return kept, left
