"""Bounded admission: what waits is counted in rows and bytes, and a full queue says when to retry."""

from __future__ import annotations

from ..config import Limits
from ..errors import DeadlineExceeded, InvalidArgument, Overloaded, Unavailable
from ..types import Job

MIN_RETRY_SECONDS = 0.01
MAX_RETRY_SECONDS = 60.0


class DrainRate:
    """Rows that end per second, as an exponential average over busy time."""

    def __init__(self, half_life: float = 5.0) -> None:
        self._half_life = half_life
        self._rows = 0.0
        self._seconds = 0.0

    def record(self, rows: int, seconds: float) -> None:
        """`rows` ended in a step that took `seconds`."""
        keep = 0.5 ** (seconds / self._half_life)
        self._rows = self._rows * keep + rows
        self._seconds = self._seconds * keep + seconds

    def seconds_for(self, rows: int) -> float:
        """Predicted time until `rows` rows have ended, clamped to a sensible delay."""
        if self._rows <= 0.0:
            return 1.0
        return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, rows * self._seconds / self._rows))


class Admission:
    """Decides whether a job may wait. Pure bookkeeping: no clock, no lock."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.drain = DrainRate()
        self.open = True
        self.waiting_rows = 0
        self.waiting_bytes = 0

    def check(self, job: Job, now: float) -> None:
        """Refuse a job that cannot be taken.

        Raises:
            Unavailable: draining. InvalidArgument: more rows than one request may have.
            DeadlineExceeded: its deadline has passed. Overloaded: the queue is full.
        """
        if not self.open:
            raise Unavailable("the server is draining")
        rows = len(job.rows)
        if rows > self._limits.max_rows_per_request:
            raise InvalidArgument(
                "count", f"{rows} rows asked for, at most {self._limits.max_rows_per_request} a request"
            )
        if job.deadline is not None and job.deadline <= now:
            raise DeadlineExceeded("the deadline passed before the request was admitted")
        # An empty queue takes any request that is allowed by itself.
        if self.waiting_rows and self.waiting_rows + rows > self._limits.max_waiting_rows:
            message = f"{self.waiting_rows} rows wait, at most {self._limits.max_waiting_rows} may"
            raise Overloaded(message, self.drain.seconds_for(self.waiting_rows))
        size = rows * job.row_bytes
        if self.waiting_bytes + size > self._limits.max_waiting_bytes:
            message = f"{self.waiting_bytes} bytes wait, {size} more would pass {self._limits.max_waiting_bytes}"
            raise Overloaded(message, self.drain.seconds_for(self.waiting_rows))

    def enter(self, job: Job) -> None:
        """Count a job's rows as waiting."""
        self.waiting_rows += len(job.rows)
        self.waiting_bytes += len(job.rows) * job.row_bytes

    def leave(self, job: Job, rows: int) -> None:
        """Count rows of a job as no longer waiting: they got a slot, or left."""
        self.waiting_rows -= rows
        self.waiting_bytes -= rows * job.row_bytes
