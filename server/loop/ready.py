"""The rows that hold a slot and wait for their next step, in one queue for each (model, network, kind of update)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from ..types import ModelKey, Row
from .shares import Share, Shares

Group = tuple[ModelKey, str, str]
"""Model, network and kind of update: rows of one group can be in one batch."""

ReadyRow = tuple[float, int, Row]
"""When a row is due, its order, and the row."""


class Ready:
    """Whose turn is it? The queue's whose (model, kind) has had the least device time; in a queue, who is due first."""

    def __init__(self) -> None:
        self._queues: dict[Group, list[ReadyRow]] = {}
        self._shares = Shares()

    def push(self, entry: ReadyRow) -> None:
        """A row is ready for its current line."""
        row = entry[2]
        line = row.current
        group = (row.job.model, line.network, line.kind)
        queue = self._queues.setdefault(group, [])
        if not queue:
            self._shares.join((group[0], group[2]), self.shares())
        heapq.heappush(queue, entry)

    def first(self, group: Group) -> Row | None:
        """Who is due first in a queue; None in an empty one."""
        queue = self._queues.get(group)
        return queue[0][2] if queue else None

    def pop(self, group: Group) -> Row:
        """Take out who is due first; there must be one."""
        return heapq.heappop(self._queues[group])[2]

    def count(self, group: Group) -> int:
        """How many wait in a queue."""
        return len(self._queues.get(group, ()))

    def network_rows(self, group: Group) -> int:
        """How many network rows wait in a queue, if all take as many as the first one; it must not be empty."""
        queue = self._queues[group]
        return len(queue) * queue[0][2].network_rows

    def next_group(self) -> Group | None:
        """The queue whose share has had the least device time; of equals, the one due first. None if all are empty."""
        candidates = (
            (self._shares[group[0], group[2]], queue[0][:2], group) for group, queue in self._queues.items() if queue
        )
        return min(candidates, default=(0.0, (0.0, 0), None), key=lambda candidate: candidate[:2])[2]

    def spend(self, share: Share, seconds: float) -> None:
        """A batch of a share ran for so long."""
        self._shares.spend(share, seconds)

    def shares(self) -> set[Share]:
        """Whose rows wait."""
        return {(group[0], group[2]) for group, queue in self._queues.items() if queue}

    def forget(self, model: ModelKey) -> None:
        """Drop an idle model."""
        self._queues = {group: queue for group, queue in self._queues.items() if group[0] != model}
        self._shares.forget(model)

    def __bool__(self) -> bool:
        return any(self._queues.values())

    def __iter__(self) -> Iterator[Row]:
        return (entry[2] for queue in self._queues.values() for entry in queue)
