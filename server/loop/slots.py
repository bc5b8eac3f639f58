"""The slots of one model's state pools, and the jobs whose rows wait for one."""

from __future__ import annotations

from sortedcontainers import SortedList

from ..types import Job, Row
from .crowd import Crowd


class Slots:
    """Gives free slots to the rows that wait, in the order of their jobs' entries."""

    def __init__(self, capacity: int, state_bytes: int) -> None:
        """state_bytes: bound on what the rows hold, beyond their slots too."""
        self.capacity = capacity
        self.waiting: SortedList[tuple[float, int, Job]] = SortedList()
        """(due, order, job), the next one first."""
        self.crowd = Crowd()
        self._free = list(range(capacity - 1, -1, -1))
        self._state_bytes = state_bytes
        self._bytes_in_flight = 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def in_flight(self) -> int:
        return self.capacity - self.free

    def give(self) -> Row | None:
        """Give a slot to the next row; None where none waits, or there is no slot or no memory for it."""
        while self.waiting and self._free:
            job = self.waiting[0][2]
            if not job.waiting:
                self.waiting.pop(0)
                continue
            # The pools are bounded by their slots; what a row holds beyond them, e.g. predictions, counts here.
            if self._bytes_in_flight and self._bytes_in_flight + job.row_bytes > self._state_bytes:
                return None
            row: Row = job.rows[job.admitted]
            row.slot = self._free.pop()
            self._bytes_in_flight += job.row_bytes
            job.admitted += 1
            return row
        return None

    def take_back(self, row: Row) -> None:
        """A row has left its slot."""
        self._free.append(row.slot)
        self._bytes_in_flight -= row.job.row_bytes
        self.crowd.leave(row.job, 1)
        row.slot = -1
