"""The contenders of a case with one engine, taking turns."""

from __future__ import annotations

from collections.abc import Callable

from .contenders import Run
from .loaded import BARE, SERVED
from .plan import Lot
from .result import Timing
from .served import Taken

MAX_CALLS = 50
"""Of one contender in a visit."""


class Race:
    """runs: who takes part, warmed up. taken: what they took, by turn. left_out: who does not take part, and why."""

    def __init__(self, lot: Lot) -> None:
        self.lot = lot
        self.runs: dict[str, Run] = {}
        self.taken: dict[str, dict[int, Taken]] = {}
        self.left_out: dict[str, str] = {}
        self._turns = 0

    def visit(self, seconds: float, deadline: float, clock: Callable[[], float]) -> None:
        """Some turns, of about so many seconds for each contender; at least one, and none is begun after the deadline.

        In a turn everybody makes one call, one right after the other, in an order that changes, so that nobody is
        always first; calls of one turn are compared with each other.
        """
        one = self.lot.seconds / max(1, len(self.lot.loaded.contenders))
        for call in range(max(1, min(MAX_CALLS, int(seconds / max(one, 1e-6))))):
            if call and clock() > deadline:
                return
            names = list(self.runs)
            for name in names if self._turns % 2 == 0 else reversed(names):
                self.taken.setdefault(name, {})[self._turns] = self.runs[name]()
            self._turns += 1

    def timings(self) -> list[Timing]:
        """What everybody took, against the bare loop."""
        bare = self.taken.get(BARE, {})
        loaded = self.lot.loaded
        return [
            Timing.of(
                *(loaded.engine, name, calls),
                bare={} if name == BARE else bare,
                networks=name == SERVED and loaded.tells_networks,
            )
            for name, calls in self.taken.items()
        ]
