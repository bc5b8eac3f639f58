"""The highest rate at which a load still meets its goals.

From a first rate the rate is doubled while the goals are met, or halved until they are, and then bisected between the
highest that met them and the lowest that did not, in ratios, until the two are within the precision. Machines are
noisy, and noise only makes a server slower: a probe that misses is made once more, with other arrivals, and counts as
missed only if that one misses too. So where the answer is near the limit it errs towards the higher rate, by less than
the latencies of two probes differ. Between two probes all answers come in.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .goals import Goal
from .plan import LoadError
from .result import LoadResult

FEWEST_REQUESTS = 10
"""A probe of fewer says nothing; a server that misses its goals at the rate that sends these has no answer."""
MOST_PROBES = 40
ATTEMPTS = 2
CONFIRMATION = ATTEMPTS
"""The number of the attempt that comes after those of the search, at the rate that it found."""

Measure = Callable[[float, int], Awaitable[LoadResult]]
"""From a rate and the number of the attempt at it, from 0, to what came of it."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One load at one rate. missed: why it does not meet the goals, in words; empty where it does."""

    rate: float
    missed: tuple[str, ...]
    result: LoadResult

    @property
    def met(self) -> bool:
        return not self.missed

    def document(self) -> dict[str, Any]:
        """Its values for JSON."""
        return {"rate": self.rate, "missed": self.missed, "result": self.result.document()}


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to.

    rate: the highest that met the goals, None where none did. bounded: whether a higher one is known that did not.
    probes: all, in their order.
    """

    goals: tuple[Goal, ...]
    rate: float | None
    bounded: bool
    probes: tuple[Probe, ...]

    def summary(self) -> str:
        """One sentence."""
        goals = ", ".join(goal.text for goal in self.goals)
        if self.rate is None:
            return f"no rate down to {min(probe.rate for probe in self.probes):.4g} requests/s meets {goals}"
        if not self.bounded:
            return f"{self.rate:.4g} requests/s, the most that a run may offer, meet {goals}"
        return f"{self.rate:.4g} requests/s is the highest rate that meets {goals}"


def probe_of(rate: float, goals: Sequence[Goal], result: LoadResult) -> Probe:
    """A load, held against the goals."""
    return Probe(rate, tuple(why for goal in goals if (why := goal.missed(result)) is not None), result)


async def search(
    measure: Measure,
    goals: Sequence[Goal],
    *,
    first: float,
    lowest: float,
    highest: float,
    precision: float = 0.05,
    tell: Callable[[Probe], None] = lambda probe: None,
) -> Found:
    """Find the highest rate that meets the goals.

    first, lowest, highest: requests a second. precision: how far apart, as a ratio, the highest rate that meets the
    goals and the lowest that does not may be at the end. tell: called after each probe.

    Raises:
        LoadError: the rates are not in order, or the precision is none.
    """
    if not 0 < precision < 1:
        raise LoadError(f"precision: must be within 0..1, got {precision}")
    if not 0 < lowest <= highest:
        raise LoadError(f"duration: too short for {FEWEST_REQUESTS} requests at any rate that may be offered")
    probes: list[Probe] = []

    async def meets(rate: float) -> bool:
        for attempt in range(ATTEMPTS):
            probes.append(probe_of(rate, goals, await measure(rate, attempt)))
            tell(probes[-1])
            if probes[-1].met:
                return True
        return False

    good, bad = 0.0, math.inf
    rate = min(max(first, lowest), highest)
    while len(probes) < MOST_PROBES:
        if await meets(rate):
            good = max(good, rate)
        else:
            bad = min(bad, rate)
        if good >= highest or bad <= lowest or bad <= good * (1 + precision):
            break
        if math.isinf(bad):
            rate = min(2 * good, highest)
        else:
            rate = max(bad / 2, lowest) if good == 0 else math.sqrt(good * bad)
    return Found(tuple(goals), good or None, not math.isinf(bad), tuple(probes))
