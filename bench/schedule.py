"""When requests are sent: arrivals fixed before the first one, so that the server cannot slow them down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

MOST_SEEDS = 2**53
"""Seeds are below it, so that they survive a reader of JSON that has doubles only."""


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


class Arrivals(Protocol):
    """A law of arrivals. rate: requests a second on average."""

    @property
    def rate(self) -> float: ...

    def at_rate(self, rate: float) -> Self:
        """The same law at another mean rate."""

    def schedule(self, seconds: float, weights: Sequence[float], seed: int) -> Schedule:
        """Arrivals within `[0, seconds)`; the same arguments give the same schedule anywhere.

        weights: of the kinds, not necessarily summing to 1.
        """

    def __str__(self) -> str:
        """In words, for titles."""


@dataclass(frozen=True)
class Poisson:
    """Requests that know nothing of each other: exponential gaps of mean `1 / rate` seconds.

    Raises:
        ValueError: the rate is not positive and finite.
    """

    rate: float

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def at_rate(self, rate: float) -> Self:
        return replace(self, rate=rate)

    def schedule(self, seconds: float, weights: Sequence[float], seed: int) -> Schedule:
        generator = np.random.Generator(np.random.PCG64(seed))
        return draw_kinds(_poisson_times(self.rate, seconds, generator), weights, generator)

    def __str__(self) -> str:
        return f"Poisson arrivals, {self.rate:.4g} requests/s"


@dataclass(frozen=True)
class Bursts:
    """Groups of `size` requests, of kinds of their own, each group at one instant; the instants are Poisson.

    The mean rate of requests is `rate`, that of the groups `rate / size`: the index of dispersion of the number of
    requests in any time is `size`, where that of Poisson arrivals is 1.

    Raises:
        ValueError: the rate is not positive and finite, or there is none in a group.
    """

    rate: float
    size: int

    def __post_init__(self) -> None:
        check_rate(self.rate)
        if self.size < 1:
            raise ValueError(f"arrivals: a burst must be of at least 1 request, got {self.size}")

    def at_rate(self, rate: float) -> Self:
        return replace(self, rate=rate)

    def schedule(self, seconds: float, weights: Sequence[float], seed: int) -> Schedule:
        generator = np.random.Generator(np.random.PCG64(seed))
        return draw_kinds(
            _poisson_times(self.rate / self.size, seconds, generator).repeat(self.size), weights, generator
        )

    def __str__(self) -> str:
        return f"bursts of {self.size}, {self.rate:.4g} requests/s"


def parse_arrivals(text: str, rate: float) -> Poisson | Bursts:
    """Read `poisson` or `burst:SIZE`.

    Raises:
        ValueError: it is neither, or the size or the rate is out of range.
    """
    name, colon, size = text.partition(":")
    if text == "poisson":
        return Poisson(rate)
    if name == "burst" and colon and size.isascii() and size.isdigit():
        return Bursts(rate, int(size))
    raise ValueError(f"arrivals: must be poisson, or burst:SIZE as in burst:8, got {text!r}")


def check_rate(rate: float) -> None:
    """Raise ValueError unless it is positive and finite."""
    if not 0 < rate < math.inf:
        raise ValueError(f"rate: must be positive and finite, got {rate}")


def _poisson_times(rate: float, seconds: float, generator: np.random.Generator) -> NDArray[np.float64]:
    blocks: list[NDArray[np.float64]] = []
    last = 0.0
    while last < seconds:
        block = last + np.cumsum(generator.exponential(1.0 / rate, size=1024))
        blocks.append(block)
        last = float(block[-1])
    at = np.concatenate(blocks) if blocks else np.empty(0)
    return at[at < seconds]


def draw_kinds(at: NDArray[np.float64], weights: Sequence[float], generator: np.random.Generator) -> Schedule:
    """A schedule of these arrivals, with kinds by their weights and a seed for each."""
    shares = np.asarray(weights, dtype=np.float64)
    kind = generator.choice(len(shares), size=len(at), p=shares / shares.sum())
    return Schedule(at, kind, generator.integers(MOST_SEEDS, size=len(at)))
