"""What moved between two results, by more than their noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from .ratios import Better, GateError, Ratio, Result

MARGIN = 1.0
"""The gap between two ranges of rounds, over the wider of them, from which on a move counts.

Ranges that merely do not touch are no news: of two measurements of the same thing in 3 rounds each, one in 20 lies
wholly above the other by chance, and a comparison has dozens of ratios. With a gap as wide as the wider range it is
one in 260 (normal noise; 1 in 22 for 2 rounds, less than 1 in 20,000 for 5), and a move of 8 standard deviations of a
round is still found 99 times in 100.
"""

LEAST = 0.05
"""A move by less than that is none, however exact both were: the same code moves by as much between two builds."""

ALONE = 2.0
"""Without rounds nothing tells the noise, and then only a factor counts that a busy machine does not make by itself."""


class Verdict(Enum):
    """What became of a ratio. MAYBE: the ranges lie apart, by less than the margin. MOVED: of what is not ours."""

    WORSE = "worse"
    MAYBE_WORSE = "perhaps worse"
    SAME = "same"
    MAYBE_BETTER = "perhaps better"
    BETTER = "better"
    MOVED = "moved"
    NEW = "new"
    GONE = "gone"
    UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True)
class Line:
    """One ratio in both results. change: of the value, as a share of the old one; NaN where there is none."""

    name: str
    old: Ratio | None
    new: Ratio | None
    change: float
    verdict: Verdict


def judge(new: Result, old: Result, margin: float = MARGIN, least: float = LEAST) -> list[Line]:
    """Every ratio of either result, those that are worse first.

    Raises:
        GateError: the two are not of the same kind, or have no ratio in common.
    """
    if new.kind != old.kind:
        raise GateError(f"the new result is of `{new.kind}`, the old one of `{old.kind}`")
    names = dict.fromkeys([*old.ratios, *new.ratios])
    if not any(name in new.ratios and name in old.ratios for name in names):
        raise GateError("the results have no ratio in common")
    lines = [_line(name, new.ratios.get(name), old.ratios.get(name), margin, least) for name in names]
    order = list(Verdict)
    return sorted(lines, key=lambda line: order.index(line.verdict))


def _line(name: str, new: Ratio | None, old: Ratio | None, margin: float, least: float) -> Line:
    if new is None or old is None:
        return Line(name, old, new, math.nan, Verdict.NEW if old is None else Verdict.GONE)
    if not (new.usable and old.usable):
        return Line(name, old, new, math.nan, Verdict.UNKNOWN)
    return Line(name, old, new, new.value / old.value - 1.0, _verdict(new, old, margin, least))


def _verdict(new: Ratio, old: Ratio, margin: float, least: float) -> Verdict:
    """Ranges are compared as logarithms, so that twice and half are as far."""
    up = new.value > old.value
    gap = math.log(new.low / old.high) if up else math.log(old.low / new.high)
    if not (new.rounds and old.rounds):
        counts = perhaps = abs(math.log(new.value / old.value)) > math.log(ALONE)
    else:
        width = max(math.log(ratio.high / ratio.low) for ratio in (new, old))
        perhaps = gap > 0.0 and abs(math.log(new.value / old.value)) >= math.log1p(least)
        counts = perhaps and gap > margin * width
    if not perhaps:
        return Verdict.SAME
    if new.better is Better.NEITHER:
        return Verdict.MOVED if counts else Verdict.SAME
    if up == (new.better is Better.HIGHER):
        return Verdict.BETTER if counts else Verdict.MAYBE_BETTER
    return Verdict.WORSE if counts else Verdict.MAYBE_WORSE


def differences(new: Mapping[str, str], old: Mapping[str, str]) -> list[str]:
    """What the two were measured with that is not the same, in words."""
    names = dict.fromkeys([*old, *new])
    return [
        f"{name}: {old.get(name, 'unknown')} before, {new.get(name, 'unknown')} now"
        for name in names
        if old.get(name) != new.get(name)
    ]
