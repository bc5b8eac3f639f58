"""Ratios of one measurement, and what they were measured with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class GateError(ValueError):
    """Results that cannot be compared; the message names the file, and what is wrong with it."""


class Better(Enum):
    """Which direction of a ratio is the good one. NEITHER: it is another server's, and nobody's fault here."""

    HIGHER = "higher"
    LOWER = "lower"
    NEITHER = "neither"


@dataclass(frozen=True, slots=True)
class Ratio:
    """A number without a unit. low, high: over the rounds or seeds; as large as the value where there was one alone.

    rounds: whether there were several, so that the range says something of the noise.
    """

    value: float
    low: float
    high: float
    better: Better
    rounds: bool = True

    @property
    def usable(self) -> bool:
        """Whether it was measured, and can be divided by."""
        return all(math.isfinite(x) and x > 0.0 for x in (self.value, self.low, self.high))


@dataclass(frozen=True)
class Result:
    """What a file holds. setting: hardware, versions and the like, by name. left_out: numbers that are no ratios."""

    kind: str
    ratios: Mapping[str, Ratio]
    setting: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
