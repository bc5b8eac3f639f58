"""Bounded admission: what waits is counted in rows and bytes, and a full queue says when to retry."""

from __future__ import annotations

from ..config import Limits
from ..errors import DeadlineExceeded, InvalidArgument, Overloaded, Unavailable
from ..types import Job, ModelKey

MIN_RETRY_SECONDS = 0.01
MAX_RETRY_SECONDS = 60.0


class DrainRate:
    """Rows that end per second, as an exponential average over busy time, whatever they were."""

    def __init__(self, half_life: float = 5.0) -> None:
        self._half_life = half_life
        self._rows = 0.0
        self._seconds = 0.0

    def record(self, rows: int, seconds: float) -> None:
        """`rows` ended in a step that took `seconds`."""
        keep = 0.5 ** (seconds / self._half_life)
        self._rows = self._rows * keep + rows
        self._seconds = self._seconds * keep + seconds

    def seconds(self, rows: float) -> float:
        """Predicted time until `rows` rows have ended; 0 before anything was measured."""
        return rows * self._seconds / self._rows if self._rows > 0.0 else 0.0

    def retry_seconds(self, rows: int) -> float:
        """A sensible delay before trying again behind `rows` rows."""
        return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, self.seconds(rows) or 1.0))


class Admission:
    """Decides whether a job may wait. Pure bookkeeping: no clock, no lock."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.drain = DrainRate()
        self.open = True
        self.waiting_rows = 0
        self.waiting_bytes = 0
        self._waiting_of: dict[ModelKey, int] = {}

    def waiting_of(self, model: ModelKey) -> int:
        """Rows of one model that wait."""
        return self._waiting_of.get(model, 0)

    def check(self, job: Job, now: float, predicted_seconds: float) -> None:
        """Refuse a job that cannot be taken.

        predicted_seconds: until the job would be done; looked at where it has a deadline.

        Raises:
            Unavailable: draining. InvalidArgument: more rows than one request may have.
            DeadlineExceeded: its deadline has passed, or cannot be met. Overloaded: the queue is full.
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
        if job.deadline is not None and job.deadline < now + predicted_seconds:
            left = job.deadline - now
            raise DeadlineExceeded(f"predicted to take {predicted_seconds:.3g} s, and {left:.3g} s are left")
        # An empty queue takes any request that is allowed by itself.
        if self.waiting_rows and self.waiting_rows + rows > self._limits.max_waiting_rows:
            message = f"{self.waiting_rows} rows wait, at most {self._limits.max_waiting_rows} may"
            raise Overloaded(message, self.drain.retry_seconds(self.waiting_rows))
        size = rows * job.row_bytes
        if size > self._limits.max_waiting_bytes:
            bound = self._limits.max_waiting_bytes
            raise InvalidArgument(
                "count", f"{rows} rows of {job.row_bytes} bytes asked for, at most {bound} bytes a request"
            )
        if self.waiting_bytes + size > self._limits.max_waiting_bytes:
            message = f"{self.waiting_bytes} bytes wait, {size} more would pass {self._limits.max_waiting_bytes}"
            raise Overloaded(message, self.drain.retry_seconds(self.waiting_rows))

    def enter(self, job: Job) -> None:
        """Count a job's rows as waiting."""
        self.waiting_rows += len(job.rows)
        self._waiting_of[job.model] = self.waiting_of(job.model) + len(job.rows)
        self.waiting_bytes += len(job.rows) * job.row_bytes

    def leave(self, job: Job, rows: int) -> None:
        """Count rows of a job as no longer waiting: they got a slot, or left."""
        self.waiting_rows -= rows
        self._waiting_of[job.model] -= rows
        self.waiting_bytes -= rows * job.row_bytes
