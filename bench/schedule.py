"""When requests are sent: arrivals fixed before the first one, so that the server cannot slow them down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Schedule:
    """Arrivals of one run; arrays `(requests,)`.

    at: seconds from the start, increasing. kind: index of the kind of each request.
    seed: what each request's noise is keyed by.
    """

    at: NDArray[np.float64]
    kind: NDArray[np.int64]
    seed: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.at)


def poisson(rate: float, duration: float, weights: Sequence[float], seed: int) -> Schedule:
    """Poisson arrivals: exponential gaps of mean `1 / rate` seconds within `[0, duration)`.

    weights: of the kinds, not necessarily summing to 1. The same arguments give the same schedule anywhere.

    Raises:
        ValueError: rate or duration is not positive.
    """
    if not (rate > 0 and duration > 0):
        raise ValueError(f"rate and duration must be positive, got {rate} and {duration}")
    generator = np.random.Generator(np.random.PCG64(seed))
    arrivals: list[NDArray[np.float64]] = []
    last = 0.0
    while last < duration:
        block = last + np.cumsum(generator.exponential(1.0 / rate, size=1024))
        arrivals.append(block)
        last = float(block[-1])
    at = np.concatenate(arrivals)
    at = at[at < duration]
    shares = np.asarray(weights, dtype=np.float64)
    kind = generator.choice(len(shares), size=len(at), p=shares / shares.sum())
    return Schedule(at, kind, generator.integers(2**53, size=len(at)))
