"""What the loop has in work, and what it has done, for metrics and status."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class ModelLoad(NamedTuple):
    """Rows of one model that hold a slot, its slots, and rows that wait for one; measured costs by network.

    A cost is (fixed, per_row) in seconds of a step, (0, 0) before any was measured.
    """

    in_flight: int
    capacity: int
    waiting: int
    costs: dict[str, tuple[float, float]]

    def beside(self, other: ModelLoad) -> ModelLoad:
        """The load of both devices; costs are this one's where it has measured some."""
        sums = (self.in_flight + other.in_flight, self.capacity + other.capacity, self.waiting + other.waiting)
        return ModelLoad(*sums, other.costs | self.costs)


@dataclass(slots=True)
class Counters:
    """Totals since start."""

    jobs: int = 0
    batches: int = 0
    batch_rows: int = 0
    rows_left: dict[str, int] = field(default_factory=dict)

    def left(self, reason: str, rows: int) -> None:
        self.rows_left[reason] = self.rows_left.get(reason, 0) + rows
