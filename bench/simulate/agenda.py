"""The events to come, in the order of their times, and the clock that they move."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Agenda:
    """Events in order; those of one moment in the order in which they were made, so that a run can be repeated."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        """How many have happened."""
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._made = 0

    def clock(self) -> float:
        """The present moment, in seconds."""
        return self.now

    def at(self, when: float, action: Callable[[Any], None], argument: Any) -> None:
        """Have `action(argument)` happen, at `when` or now where that has passed."""
        self._made += 1
        heappush(self._heap, (when, self._made, action, argument))

    @property
    def next_time(self) -> float:
        """When the next event happens; infinite where there is none."""
        return self._heap[0][0] if self._heap else float("inf")

    def step(self) -> None:
        """Let the next event happen."""
        when, _, action, argument = heappop(self._heap)
        if when > self.now:
            self.now = when
        self.events += 1
        action(argument)
