"""What a load consists of, checked before anything is started for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from ..mix import Kind
from ..schedule import Arrivals, Poisson

DEFAULT_MIX = "ddim:1=4,ddim:8=2,iddim:4:m=0.6=2,vdrme:4:model=digits-vdrme=1,score:model=digits-vdrme=2"
DEFAULT_RATE = 50.0
DEFAULT_ARRIVALS = Poisson(DEFAULT_RATE)
MOST_REQUESTS = 500_000
LONGEST = 3600.0
"""Seconds of warm-up and load together."""
LONGEST_CLOSED = 600.0
"""Of a closed loop, in which a fast server makes the requests many."""
MOST_CLIENTS = 4096


class LoadError(ValueError):
    """A load that cannot be sent; the message names the option."""


@dataclass(frozen=True, slots=True)
class Clients:
    """A closed loop. clients: how many. think: seconds that each waits before its next request, on average."""

    clients: int
    think: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.clients <= MOST_CLIENTS:
            raise LoadError(f"clients: must be within 1..{MOST_CLIENTS}, got {self.clients}")
        if not 0 <= self.think < math.inf:
            raise LoadError(f"think: must not be negative, got {self.think}")

    def __str__(self) -> str:
        thinking = f" that think for {self.think:g} s" if self.think else ""
        return f"closed loop, {self.clients} client{'s' if self.clients > 1 else ''}{thinking}"


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to send.

    mix: kinds of calls and their weights (`bench.mix`). arrivals: of an open loop, or the clients of a closed one.
    duration, warmup, timeout: seconds; a kind may have a timeout of its own. max_open: requests unanswered, of an open
    loop.

    Raises:
        LoadError: a value out of range, or more requests than fit; names the option.
    """

    mix: str = DEFAULT_MIX
    arrivals: Arrivals | Clients = DEFAULT_ARRIVALS
    duration: float = 20.0
    warmup: float = 3.0
    seed: int = 0
    timeout: float = 10.0
    max_open: int = 4096

    def __post_init__(self) -> None:
        for name in ("duration", "timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise LoadError(f"{name}: must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.warmup < math.inf:
            raise LoadError(f"warmup: must not be negative, got {self.warmup}")
        if self.seed < 0:
            raise LoadError(f"seed: must not be negative, got {self.seed}")
        if self.max_open < 1:
            raise LoadError(f"max_open: must be at least 1, got {self.max_open}")
        longest = LONGEST_CLOSED if self.closed else LONGEST
        if self.seconds > longest:
            raise LoadError(f"duration: with the warm-up at most {longest:g} s, got {self.seconds:g}")
        if not isinstance(self.arrivals, Clients) and self.arrivals.rate * self.seconds > MOST_REQUESTS:
            raise LoadError(f"rate: at most {MOST_REQUESTS} requests in a run, got {self.arrivals.rate:g} a second")

    @property
    def closed(self) -> bool:
        """Whether clients wait for their answers; if so, latencies are service times."""
        return isinstance(self.arrivals, Clients)

    @property
    def seconds(self) -> float:
        """Of warm-up and load together."""
        return self.warmup + self.duration

    @property
    def rate(self) -> float:
        """Requests a second, of an open loop.

        Raises:
            LoadError: it is a closed one.
        """
        if isinstance(self.arrivals, Clients):
            raise LoadError("clients: a closed loop has no rate of its own")
        return self.arrivals.rate

    def at_rate(self, rate: float, seed: int | None = None) -> Self:
        """The same load at another mean rate, and by another seed where one is given.

        Raises:
            LoadError: it is a closed loop, which has no rate of its own, or there would be too many requests.
        """
        if isinstance(self.arrivals, Clients):
            raise LoadError("clients: a closed loop has no rate to choose")
        return replace(self, arrivals=self.arrivals.at_rate(rate), seed=self.seed if seed is None else seed)

    def timeouts(self, kinds: Sequence[Kind]) -> list[float]:
        """Seconds that a request of each kind may take."""
        return [self.timeout if kind.timeout is None else kind.timeout for kind in kinds]

    def document(self) -> dict[str, Any]:
        """Its values for JSON, those of the arrivals among them."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "arrivals"}
        own = {
            field.name: value
            for field in fields(self.arrivals)  # type: ignore[arg-type]
            if isinstance(value := getattr(self.arrivals, field.name), int | float | str)
        }
        return {**values, "arrivals": {"law": type(self.arrivals).__name__.lower(), **own}}
