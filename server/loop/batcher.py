"""The step batcher: schedule -> (run) -> complete, in pure Python with an injected clock (DESIGN 1).

Rows wait in one queue for each (model, network, kind of update), whatever their step, sampler, seed
or coefficients. A batch takes the queue whose head has waited longest, oldest rows first; after its
step a row goes to the tail of its next queue. So a row that arrives while a batch runs is in the
next one, ahead of the rows that have just run, and nothing starves: a row waits for the rows ahead
of it at its arrival and for no others.

Not thread-safe: the engine calls it under its lock.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..config import Limits
from ..errors import DeadlineExceeded, NotFound, ServerError
from ..types import Batch, Job, ModelKey, Row
from .admission import Admission
from .cost import StepCost

Group = tuple[ModelKey, str, str]


@dataclass(slots=True)
class _Model:
    """Scheduling state of one model: free slots, and the jobs that have rows without one."""

    free: list[int]
    capacity: int
    waiting: list[tuple[int, int, Job]] = field(default_factory=list)


@dataclass(slots=True)
class Counters:
    """Totals since start, for metrics and status."""

    jobs: int = 0
    batches: int = 0
    batch_rows: int = 0
    rows_left: dict[str, int] = field(default_factory=dict)

    def left(self, reason: str, rows: int) -> None:
        self.rows_left[reason] = self.rows_left.get(reason, 0) + rows


class Batcher:
    """Queues, slots and the order in which rows run."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._models: dict[ModelKey, _Model] = {}
        self._ready: dict[Group, deque[Row]] = {}
        self._costs: dict[tuple[ModelKey, str], StepCost] = {}
        self._jobs: set[Job] = set()
        self._order = 0
        self.admission = Admission(limits)
        self.counters = Counters()

    # -- models and jobs ---------------------------------------------------------------------

    def add_model(self, key: ModelKey, capacity: int) -> None:
        """Make a model known, with as many slots as its state pools hold."""
        self._models[key] = _Model(free=list(range(capacity - 1, -1, -1)), capacity=capacity)

    def submit(self, job: Job) -> None:
        """Admit a job, or raise what `Admission.check` raises; a refused job leaves no trace."""
        model = self._models.get(job.model)
        if model is None:
            raise NotFound(f"model {job.model.name} version {job.model.version} is not loaded")
        now = self._clock()
        self.admission.check(job, now)
        self.admission.enter(job)
        job.order = self._next_order()
        job.remaining = len(job.rows)
        self._jobs.add(job)
        self.counters.jobs += 1
        heapq.heappush(model.waiting, (-job.priority, job.order, job))
        # Now, not at the next schedule: a row that arrives while a batch runs comes before the rows of that batch.
        self._fill_slots(model)

    def end(self, job: Job, error: ServerError, reason: str) -> bool:
        """End a job from outside: its caller is gone, or a stop will not wait for it.

        Rows without a slot leave now, rows in flight at the next step.
        Returns False when it had ended already.
        """
        if job.ended:
            return False
        self._end(job, error, reason)
        return True

    @property
    def idle(self) -> bool:
        """No job is left."""
        return not self._jobs

    @property
    def jobs(self) -> int:
        """Jobs that have not ended."""
        return len(self._jobs)

    @property
    def rows_in_flight(self) -> int:
        """Rows that hold a slot."""
        return sum(model.capacity - len(model.free) for model in self._models.values())

    def open_jobs(self) -> list[Job]:
        """The jobs that have not ended."""
        return list(self._jobs)

    # -- schedule -----------------------------------------------------------------------------

    def schedule(self) -> tuple[Batch | None, list[tuple[Job, ServerError]]]:
        """The next batch, or None when nothing can run; and the jobs that turned out to be late."""
        ended: list[tuple[Job, ServerError]] = []
        now = self._clock()
        while True:
            for model in self._models.values():
                self._fill_slots(model)
            group = self._oldest_group()
            if group is None:
                return None, ended
            rows = self._take(group, now, ended)
            if rows:
                break
        batch = Batch(*group, rows)
        for job in {row.job for row in rows}:
            if job.started is None:
                job.started = now
        return batch, ended

    def _fill_slots(self, model: _Model) -> None:
        """Give free slots to the rows that wait, by priority and then by arrival."""
        while model.waiting and model.free:
            job = model.waiting[0][2]
            if not job.waiting:
                heapq.heappop(model.waiting)
                continue
            row = job.rows[job.admitted]
            row.slot = model.free.pop()
            job.admitted += 1
            self.admission.leave(job, 1)
            self._enqueue(row)

    def _oldest_group(self) -> Group | None:
        heads = ((rows[0].order, group) for group, rows in self._ready.items() if rows)
        return min(heads, default=(0, None), key=lambda head: head[0])[1]

    def _take(self, group: Group, now: float, ended: list[tuple[Job, ServerError]]) -> list[Row]:
        queue = self._ready[group]
        limit = self._rows_for(group)
        rows: list[Row] = []
        taken = 0
        while queue:
            row = queue[0]
            if self._ends_early(row.job, now, ended):
                queue.popleft()
                self._free(row)
                continue
            taken += row.network_rows
            if rows and taken > limit:
                break
            rows.append(queue.popleft())
        return rows

    def _rows_for(self, group: Group) -> int:
        """Network rows that are predicted to fit in the step budget, at least one."""
        cost = self._costs.get(group[:2])
        if cost is None:
            return self._limits.max_batch_rows
        return max(1, min(self._limits.max_batch_rows, cost.rows_within(self._limits.step_seconds)))

    def _ends_early(self, job: Job, now: float, ended: list[tuple[Job, ServerError]]) -> bool:
        """Whether a job's rows are to leave; ends the job the first time."""
        if job.ended:
            return True
        if job.deadline is not None and job.deadline <= now:
            ended.append((job, self._end(job, DeadlineExceeded("the deadline passed between two steps"), "late")))
            return True
        return False

    # -- complete -----------------------------------------------------------------------------

    def complete(self, batch: Batch, seconds: float) -> list[tuple[Job, ServerError | None]]:
        """Account for a batch that ran: rows go on, or leave; returns the jobs that ended.

        A row's `failure` ends its whole job, and nobody else's.
        """
        network_rows = batch.network_rows
        self._costs.setdefault((batch.model, batch.network), StepCost()).record(network_rows, seconds)
        self.counters.batches += 1
        self.counters.batch_rows += network_rows
        for job in {row.job for row in batch.rows}:
            job.compute_seconds += seconds
            job.batches += 1
            job.batch_rows += network_rows
        done: list[tuple[Job, ServerError | None]] = []
        finished = 0
        for row in batch.rows:
            job = row.job
            if job.ended:
                self._free(row)
            elif row.failure is not None:
                self._free(row)
                done.append((job, self._end(job, row.failure, "failed")))
            elif row.last:
                finished += 1
                self._free(row)
                job.remaining -= 1
                if job.remaining == 0:
                    self._jobs.discard(job)
                    job.ended = True
                    self.counters.left("finished", len(job.rows))
                    done.append((job, None))
            else:
                row.line += 1
                self._enqueue(row)
        self.admission.drain.record(finished, seconds)
        return done

    # -- helpers ------------------------------------------------------------------------------

    def _end(self, job: Job, error: ServerError, reason: str) -> ServerError:
        """Mark a job as ended; rows in flight are dropped where they surface next."""
        self.counters.left(reason, job.remaining)
        self.admission.leave(job, job.waiting)
        del job.rows[job.admitted :]
        self._jobs.discard(job)
        job.ended = True
        return error

    def _enqueue(self, row: Row) -> None:
        row.order = self._next_order()
        line = row.current
        self._ready.setdefault((row.job.model, line.network, line.kind), deque()).append(row)

    def _free(self, row: Row) -> None:
        self._models[row.job.model].free.append(row.slot)
        row.slot = -1

    def _next_order(self) -> int:
        self._order += 1
        return self._order
