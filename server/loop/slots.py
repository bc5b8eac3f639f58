"""The slots of one model's state pools, and the jobs whose rows wait for one."""

from __future__ import annotations

from sortedcontainers import SortedList

from ..errors import InvalidArgument
from ..types import Job, Row
from .crowd import Crowd
from .sizes import slots_of


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
        self.in_flight = 0
        """Rows that have their slots."""

    def rows_at_once(self, row: Row) -> int:
        """How many rows like this one there may be."""
        return self.capacity // slots_of(row.program)

    def free_for(self, row: Row) -> int:
        """For how many rows like this one there are slots."""
        return len(self._free) // slots_of(row.program)

    def check(self, job: Job) -> None:
        """Refuse a job of which a row needs more slots than there are.

        Raises:
            InvalidArgument: what takes the slots are the predictions that its weights ask for.
        """
        most = max(slots_of(row.program) for row in job.rows)
        if most > self.capacity:
            raise InvalidArgument(
                "weights",
                f"{most - 1} predictions of a sample are to be kept, and there is room for {self.capacity - 1}",
            )

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
            if not self.free_for(row):
                return None
            row.slot = self._free.pop()
            row.kept = [self._free.pop() for _ in range(row.program.kept_predictions)]
            self.in_flight += 1
            self._bytes_in_flight += job.row_bytes
            job.admitted += 1
            return row
        return None

    def take_back(self, row: Row) -> None:
        """A row has left its slots."""
        self._free += [row.slot, *row.kept]
        self.in_flight -= 1
        self._bytes_in_flight -= row.job.row_bytes
        self.crowd.leave(row.job, 1)
        row.slot, row.kept = -1, []
