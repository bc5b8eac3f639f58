"""The smallest fleet that meets a latency goal, by bisection."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..percentiles import percentile
from .fleet import Run
from .results import measured
from .traffic import CompiledCall

_GOAL = re.compile(
    r"(?:(?P<kind>\S+)\s+)?p(?P<share>\d+(?:\.\d+)?)\s*<\s*(?P<time>\d+(?:\.\d*)?|\.\d+)(?P<unit>us|ms|s)"
)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}

EXACT = 100
"""Fleets up to so many replicas are told apart one by one, larger ones to one in so many."""


class GoalError(ValueError):
    """A goal that cannot be read; the message quotes it."""


@dataclass(frozen=True)
class Goal:
    """A percentile of all requests of a kind, or of all kinds, is to be below so many seconds.

    A request that is refused or late counts as one that took forever.
    """

    text: str
    kind: str
    share: float
    seconds: float

    def value(self, calls: Sequence[CompiledCall], run: Run) -> float:
        """The percentile in a run, in seconds."""
        which = measured(run)
        if self.kind:
            which = which & (run.schedule.kind == [call.name for call in calls].index(self.kind))
        return percentile(np.where(run.reason[which] == 0, run.latency[which], np.inf), self.share)

    def met(self, calls: Sequence[CompiledCall], run: Run) -> bool:
        """Whether a run meets it; one without requests of the kind does not."""
        return self.value(calls, run) < self.seconds


def parse_goal(text: str, kinds: Sequence[str]) -> Goal:
    """Read `p99<50ms`, or `KIND p99<50ms`.

    Raises:
        GoalError: it is neither, or there is no such kind.
    """
    found = _GOAL.fullmatch(text.strip())
    if found is None:
        raise GoalError(f"goal: {text!r} is neither 'p99<50ms' nor 'KIND p99<50ms' (units us, ms, s)")
    kind, share, seconds = found["kind"] or "", float(found["share"]), float(found["time"]) * _UNITS[found["unit"]]
    if kind and kind not in kinds:
        raise GoalError(f"goal: no kind {kind!r} in the mix; there are: {', '.join(kinds)}")
    if not 0 < share <= 100:
        raise GoalError(f"goal: the percentile must be within (0, 100], got {share:g} in {text!r}")
    if not seconds > 0:
        raise GoalError(f"goal: the time must be positive, got {text!r}")
    return Goal(text.strip(), kind, share, seconds)


def smallest(meets: Callable[[int], bool], low: int, most: int) -> int | None:
    """The smallest number from `low` to `most` that meets a goal, which larger ones are taken to meet as well.

    It doubles until one meets it, then bisects: to the number itself up to `EXACT`, above to one in `EXACT`.

    Returns: None where not even `most` does.
    """
    failed, tried = low - 1, min(max(1, low), most)
    while not meets(tried):
        if tried == most:
            return None
        failed, tried = tried, min(2 * tried, most)
    met = tried
    while met - failed > max(1, met // EXACT):
        tried = (met + failed) // 2
        if meets(tried):
            met = tried
        else:
            failed = tried
    return met
