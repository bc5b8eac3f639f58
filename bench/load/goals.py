"""What a load has to meet: `p99<50ms`, `ddim:1:p50<8ms` for one kind, `errors<1%`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from .plan import LoadError
from .result import ALL, SHARES, LoadResult

ERRORS = "errors"
MEASURES = (*(f"p{share:g}" for share in SHARES), "max")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_GOAL = re.compile(r"(?:(?P<kind>.+):)?(?P<measure>[^:<]+)<(?P<bound>[0-9.]+)(?P<unit>us|ms|s|%)")


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound that a figure of a load has to be below.

    kind: name of a kind, or `all`. measure: a percentile, `max`, or `errors`. bound: seconds; of errors a share.
    """

    text: str
    kind: str
    measure: str
    bound: float

    @classmethod
    def parse(cls, text: str, kinds: Sequence[str]) -> Self:
        """Read a goal for a load of these kinds.

        Raises:
            LoadError: it cannot be read, or names a kind that is none of the load's.
        """
        read = _GOAL.fullmatch("".join(text.split()))
        try:
            bound = float(read["bound"]) if read else math.nan
        except ValueError:
            bound = math.nan
        if read is None or not 0 < bound < math.inf:
            raise LoadError(f"goal: must be as p99<50ms, KIND:p99<50ms or errors<1%, got {text!r}")
        measure, unit, kind = read["measure"], read["unit"], read["kind"] or ALL
        if measure not in (*MEASURES, ERRORS) or (measure == ERRORS) != (unit == "%"):
            raise LoadError(f"goal: {text!r} must bound one of {', '.join(MEASURES)} in us, ms or s, or {ERRORS} in %")
        if kind not in (*kinds, ALL):
            raise LoadError(f"goal: {text!r} is for {kind!r}, and the mix has {', '.join(kinds)}")
        return cls(text, kind, measure, bound / 100 if unit == "%" else bound * _SECONDS[unit])

    def value(self, result: LoadResult) -> float:
        """The figure that it bounds; NaN where nothing was measured."""
        own = next((kind for kind in result.kinds if kind.name == self.kind), result.total)
        return own.error_share if self.measure == ERRORS else own.latency[self.measure]

    def missed(self, result: LoadResult) -> str | None:
        """Why it is not met, in words; None where it is, or where no request of its kind was sent."""
        own = next((kind for kind in result.kinds if kind.name == self.kind), result.total)
        value = self.value(result)
        if own.sent == 0 or value < self.bound:
            return None
        whose = "" if self.kind == ALL else f"{self.kind} "
        if self.measure == ERRORS:
            return f"{whose}errors {100 * value:.3g} %"
        return f"{whose}{self.measure} " + (
            "unknown, nothing was answered" if math.isnan(value) else f"{1e3 * value:.4g} ms"
        )
