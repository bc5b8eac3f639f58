"""The slots of one model's state pools and of its kept predictions, and the jobs whose rows wait for them."""

from __future__ import annotations

from sortedcontainers import SortedList

from ..errors import InvalidArgument
from ..types import Job, Row
from .admission import DrainRate
from .crowd import Crowd

Entry = tuple[float, int, Job]
"""(due, order, job), the next one first."""


MOST_OF_PREDICTED = 3.0
"""How many times as long as their steps are predicted to take rows are expected to hold their slots, at the most.

Rows that end lately tell best how fast slots come free under load: those with earlier deadlines overtake, and some are
late. But they may have been of another kind, or alone in their batches, and must not have a server refuse for good what
it could do at once."""


class Slots:
    """Gives free slots to the rows that wait, in the order of their jobs' entries.

    A row has one slot, and one of another pool for each prediction that its program keeps. Rows that keep some, and
    wait for predictions of others to go, hold up nobody but each other.
    """

    def __init__(self, capacity: int) -> None:
        """capacity: of each pool."""
        self.capacity = capacity
        self.crowd = Crowd()
        self._free = list(range(capacity - 1, -1, -1))
        self._free_kept = list(range(capacity - 1, -1, -1))
        self._waiting: SortedList[Entry] = SortedList()
        self._waiting_to_keep: SortedList[Entry] = SortedList()
        self._waiting_rows = 0
        self._seconds = 0.0  # of the device, that the rows take that are in flight or wait, for all their steps

    @property
    def in_flight(self) -> int:
        """Rows that have a slot."""
        return self.capacity - len(self._free)

    @property
    def waited_for(self) -> bool:
        """Whether there are rows without a slot."""
        return bool(self._waiting or self._waiting_to_keep)

    def rows_at_once(self, row: Row) -> int:
        """How many rows like this one there may be."""
        kept = row.program.kept_predictions
        return self.capacity // kept if kept else self.capacity

    def free_for(self, row: Row) -> int:
        """For how many rows like this one there is room."""
        kept = row.program.kept_predictions
        return min(len(self._free), len(self._free_kept) // kept) if kept else len(self._free)

    def check(self, job: Job) -> None:
        """Refuse a job that asks to keep more predictions of a row than there is room for.

        Raises:
            InvalidArgument: names the weights, which ask for it.
        """
        kept = job.rows[0].program.kept_predictions
        if kept > self.capacity:
            raise InvalidArgument(
                "weights", f"{kept} predictions of a sample are to be kept, and there is room for {self.capacity}"
            )

    def add(self, entry: Entry) -> None:
        """Have a job's rows wait."""
        job = entry[2]
        self._queue_of(job).add(entry)
        self._waiting_rows += len(job.rows)
        self._seconds += len(job.rows) * job.row_seconds

    def discard(self, entry: Entry) -> None:
        """No row of the job waits any more, of those that it still has."""
        job = entry[2]
        self._queue_of(job).discard(entry)
        self._waiting_rows -= job.waiting
        self._seconds -= job.waiting * job.row_seconds

    def wait_seconds(self, entry: Entry, drain: DrainRate, sharing: int) -> float:
        """Predicted seconds until a job has slots for all its rows; sharing: how many shares the device is in.

        As fast as rows have ended lately, but bounded by what the steps of those that are here are predicted to take.
        """
        job = entry[2]
        rows = len(job.rows)
        missing = self._ahead(entry) * self._waiting_rows + rows - self.free_for(job.rows[0])
        if missing <= 0.0:
            return 0.0
        each = (self._seconds + rows * job.row_seconds) / (self.in_flight + self._waiting_rows + rows)
        return min(drain.seconds(missing), missing * MOST_OF_PREDICTED * sharing * each)

    def _ahead(self, entry: Entry) -> float:
        """Which share of the jobs that wait comes before an entry."""
        queues = self._waiting, self._waiting_to_keep
        before: int = sum(queue.bisect_left(entry) for queue in queues)
        return before / max(1, sum(len(queue) for queue in queues))

    def give(self) -> Row | None:
        """Give the next row its slots; None where none waits that there is room for."""
        queue = self._next_queue() if self._waiting_to_keep else self._waiting
        if not queue or not self._free:
            return None
        job = queue[0][2]
        row: Row = job.rows[job.admitted]
        row.slot = self._free.pop()
        if row.program.kept_predictions:
            row.kept = [self._free_kept.pop() for _ in range(row.program.kept_predictions)]
        job.admitted += 1
        self._waiting_rows -= 1
        if not job.waiting:
            queue.pop(0)
        return row

    def take_back(self, row: Row) -> None:
        """A row has left its slots."""
        self._free.append(row.slot)
        row.slot = -1
        if row.kept:
            self._free_kept += row.kept
            row.kept = []
        self.crowd.leave(row.job, 1)
        self._seconds -= row.job.row_seconds
        if not (self.in_flight or self._waiting_rows):
            self._seconds = 0.0  # rounding errors do not pile up

    def _queue_of(self, job: Job) -> SortedList[Entry]:
        """All rows of a job have the same program, or are scores, which keep nothing."""
        return self._waiting_to_keep if job.rows[0].program.kept_predictions else self._waiting

    def _next_queue(self) -> SortedList[Entry]:
        """Where some wait to keep predictions: these, if there is room and they are due first, else the others."""
        entry = self._waiting_to_keep[0]
        if self.free_for(entry[2].rows[0]) and not (self._waiting and self._waiting[0] < entry):
            return self._waiting_to_keep
        return self._waiting
