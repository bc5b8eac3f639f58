"""How calls are spread over replicas.

A router knows which calls it sent where and which of them were answered, and nothing of a replica's inside: that is
what a proxy can know at no cost. Where there are several routers, none knows of the others' calls. The one exception
is `oracle`, which is there as a bound.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from sortedcontainers import SortedList

from .traffic import CompiledCall


class Router(Protocol):
    """One proxy in front of the fleet."""

    def pick(self, call: CompiledCall) -> int:
        """The replica that a call is sent to."""
        ...

    def answered(self, replica: int) -> None:
        """The answer of a call that was sent to that replica has come."""
        ...


class Random:
    """Any replica, whatever it has to do."""

    def __init__(self, replicas: int, rng: random.Random) -> None:
        self._replicas = replicas
        self._rng = rng

    def pick(self, call: CompiledCall) -> int:
        return self._rng.randrange(self._replicas)

    def answered(self, replica: int) -> None:
        """Nothing is kept."""


class RoundRobin:
    """One replica after the other; each router begins at one of its own."""

    def __init__(self, replicas: int, rng: random.Random) -> None:
        self._replicas = replicas
        self._next = rng.randrange(replicas)

    def pick(self, call: CompiledCall) -> int:
        self._next = (self._next + 1) % self._replicas
        return self._next

    def answered(self, replica: int) -> None:
        """Nothing is kept."""


class LeastLoaded:
    """The replica with the fewest calls of this router unanswered; of equals the one picked longest ago. O(log n)."""

    def __init__(self, replicas: Sequence[int], rng: random.Random) -> None:
        order = list(replicas)
        rng.shuffle(order)  # so that several routers do not all begin with the same ones
        self._places = {replica: (0, turn, replica) for turn, replica in enumerate(order)}
        self._order: SortedList[tuple[int, int, int]] = SortedList(self._places.values())
        self._turn = len(order)

    def pick(self, call: CompiledCall) -> int:
        open_calls, _, replica = self._order[0]
        self._turn += 1
        self._move(replica, (open_calls + 1, self._turn, replica))
        return replica

    def answered(self, replica: int) -> None:
        open_calls, turn, _ = self._places[replica]
        self._move(replica, (open_calls - 1, turn, replica))

    def _move(self, replica: int, place: tuple[int, int, int]) -> None:
        self._order.remove(self._places[replica])
        self._order.add(place)
        self._places[replica] = place


class TwoChoices:
    """Of two replicas taken at random the one with fewer calls of this router unanswered."""

    def __init__(self, replicas: int, rng: random.Random) -> None:
        self._open = [0] * replicas
        self._rng = rng

    def pick(self, call: CompiledCall) -> int:
        replicas = len(self._open)
        first = self._rng.randrange(replicas)
        # Another one than the first, each as likely.
        second = (first + 1 + self._rng.randrange(replicas - 1)) % replicas if replicas > 1 else first
        chosen = second if self._open[second] < self._open[first] else first
        self._open[chosen] += 1
        return chosen

    def answered(self, replica: int) -> None:
        self._open[replica] -= 1


class ByModel:
    """Each model has replicas of its own, in proportion to its share of the work; among them the least loaded."""

    def __init__(self, shares: Mapping[str, float], replicas: int, rng: random.Random) -> None:
        """shares: of the work, by model."""
        self._homes = homes_of(shares, replicas)
        # Models that share all their replicas share what is known of them.
        routers = {home: LeastLoaded(home, rng) for home in sorted(set(self._homes.values()))}
        self._routers = {model: routers[home] for model, home in self._homes.items()}
        self._router_of = {replica: router for home, router in routers.items() for replica in home}

    def pick(self, call: CompiledCall) -> int:
        return self._routers[call.model.name].pick(call)

    def answered(self, replica: int) -> None:
        self._router_of[replica].answered(replica)


def homes_of(shares: Mapping[str, float], replicas: int) -> dict[str, tuple[int, ...]]:
    """Which replicas each model gets.

    With as many replicas as models, or more: disjoint, at least one each, the rest by largest remainders. With fewer:
    one replica each, the model with most work first to the replica that has least.
    """
    models = sorted(shares, key=lambda model: (-shares[model], model))
    if replicas < len(models):
        loads = [0.0] * replicas
        homes: dict[str, tuple[int, ...]] = {}
        for model in models:
            least = loads.index(min(loads))
            loads[least] += shares[model]
            homes[model] = (least,)
        return homes
    total = sum(shares.values())
    spare = replicas - len(models)
    wanted = {model: max(0.0, replicas * shares[model] / total - 1.0) for model in models}
    scale = spare / sum(wanted.values()) if any(wanted.values()) else 0.0
    counts = {model: 1 + int(wanted[model] * scale) for model in models}
    left = sorted(models, key=lambda model: (counts[model] - 1 - wanted[model] * scale, model))
    for model in left[: replicas - sum(counts.values())]:
        counts[model] += 1
    first, homes = 0, {}
    for model in models:
        homes[model] = tuple(range(first, first + counts[model]))
        first += counts[model]
    return homes


class Oracle:
    """The replica that has least work left, as it is inside at this moment; all routers see the same. A bound."""

    def __init__(self, replicas: int) -> None:
        self._places = [(0.0, replica) for replica in range(replicas)]
        self._order: SortedList[tuple[float, int]] = SortedList(self._places)

    def pick(self, call: CompiledCall) -> int:
        return self._order[0][1]

    def answered(self, replica: int) -> None:
        """Work is what counts, not answers."""

    def has_left(self, replica: int, seconds: float) -> None:
        """A replica's work has changed."""
        self._order.remove(self._places[replica])
        self._places[replica] = (seconds, replica)
        self._order.add(self._places[replica])


Maker = Callable[[Mapping[str, float], int, random.Random], Router]

POLICIES: dict[str, Maker] = {
    "random": lambda shares, replicas, rng: Random(replicas, rng),
    "round-robin": lambda shares, replicas, rng: RoundRobin(replicas, rng),
    "least-loaded": lambda shares, replicas, rng: LeastLoaded(range(replicas), rng),
    "two-choices": lambda shares, replicas, rng: TwoChoices(replicas, rng),
    "by-model": ByModel,
    "oracle": lambda shares, replicas, rng: Oracle(replicas),
}
"""By name: one router, for a fleet of so many replicas; the first argument is each model's share of the work."""
