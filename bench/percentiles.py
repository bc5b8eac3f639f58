"""Percentiles by nearest rank: each is a latency that was measured, none is interpolated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def percentile(values: ArrayLike, share: float) -> float:
    """The smallest value that at least `share` percent of the values do not exceed.

    values: `(n,)`, in any order. share: in (0, 100].

    Returns: NaN for no values.

    Raises:
        ValueError: share is out of range.
    """
    if not 0 < share <= 100:
        raise ValueError(f"share must be within (0, 100], got {share}")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if len(ordered) == 0:
        return math.nan
    return float(ordered[math.ceil(share * len(ordered) / 100) - 1])


def percentiles(values: ArrayLike, shares: Sequence[float] = (50, 90, 99)) -> dict[str, float]:
    """Percentiles by name: `p50`, `p90`, `p99`, and `max`."""
    return {f"p{share:g}": percentile(values, share) for share in shares} | {"max": percentile(values, 100)}
