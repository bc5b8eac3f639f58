"""The step batcher: schedule -> (run) -> complete, in pure Python with an injected clock (DESIGN 1).

Rows wait in one queue for each (model, network, kind of update), whatever their step, sampler, seed
or coefficients. Two questions are answered at each step:

Which queue? The one whose (model, kind) has had the least device time; one that was empty joins at
the level of the others. So sampling, Langevin dynamics and scoring, and the models, share the
device by time, and a lone request never stands behind another model's backlog.

Which rows? Those due first. A row is due `PATIENCE_SECONDS` after it joined its queue, or, where
that is earlier, when its job must start to meet its deadline; priority moves the first of the two.
So rows without deadlines take turns, and a row that arrives while a batch runs comes before the
rows of that batch. Nothing starves: rows are due at the latest a bounded time after they joined,
and at the earliest `URGENCY_SECONDS` before; who joins later than that cannot overtake.

A job whose deadline cannot be met is refused at admission where that can be predicted, and else
leaves before the first step that would be taken in vain.

Not thread-safe: the engine calls it under its lock.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

from sortedcontainers import SortedList

from ..config import Limits
from ..errors import DeadlineExceeded, ModelGone, ServerError
from ..types import Batch, Job, ModelKey, Row
from .admission import Admission
from .cost import StepCost

Group = tuple[ModelKey, str, str]

PATIENCE_SECONDS = 1.0
"""How long after joining its queue a row without a deadline is due."""

PRIORITY_SECONDS = 0.1
"""How much earlier one level of priority makes a row due."""

URGENCY_SECONDS = 5.0
"""The most by which priority and deadline together may make a row due before it joined its queue."""

STALE_SECONDS = 5.0
"""After this long, and twice the step itself, without a batch of a network, its cost refuses nobody any more.

Else one slow spell, e.g. while a model is loaded, could refuse every request with a deadline for good: no batch would
run that could show that the spell is over.
"""


@dataclass(slots=True)
class _Model:
    """Scheduling state of one model: free slots, and the jobs that have rows without one."""

    free: list[int]
    capacity: int
    bytes_in_flight: int = 0
    # (due, order, job), the next one first.
    waiting: SortedList[tuple[float, int, Job]] = field(default_factory=SortedList)

    @property
    def in_flight(self) -> int:
        return self.capacity - len(self.free)


class ModelLoad(NamedTuple):
    """Rows of one model that hold a slot, its slots, and rows that wait for one; measured costs by network.

    A cost is (fixed, per_row) in seconds of a step, (0, 0) before any was measured.
    """

    in_flight: int
    capacity: int
    waiting: int
    costs: dict[str, tuple[float, float]]


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
        self._ready: dict[Group, list[tuple[float, int, Row]]] = {}
        self._device_seconds: dict[tuple[ModelKey, str], float] = {}
        self._costs: dict[tuple[ModelKey, str], StepCost] = {}
        self._closed: set[ModelKey] = set()
        self._jobs: set[Job] = set()
        self._deadlines: SortedList[tuple[float, int, Job]] = SortedList()
        self._order = 0
        self.admission = Admission(limits)
        self.counters = Counters()

    # -- models and jobs ---------------------------------------------------------------------

    def add_model(self, key: ModelKey, capacity: int) -> None:
        """Make a model known, with as many slots as its state pools hold."""
        self._models[key] = _Model(free=list(range(capacity - 1, -1, -1)), capacity=capacity)

    def close_model(self, key: ModelKey) -> None:
        """Refuse new jobs of a model from now on; those that it has go on."""
        self._closed.add(key)

    def model_idle(self, key: ModelKey) -> bool:
        """No job and no row of the model is left."""
        return self._models[key].in_flight == 0 and all(job.model != key for job in self._jobs)

    def remove_model(self, key: ModelKey) -> None:
        """Forget an idle model."""
        del self._models[key]
        self._closed.discard(key)
        self._ready = {group: queue for group, queue in self._ready.items() if group[0] != key}
        self._costs = {network: cost for network, cost in self._costs.items() if network[0] != key}
        self._device_seconds = {share: spent for share, spent in self._device_seconds.items() if share[0] != key}

    def submit(self, job: Job) -> None:
        """Admit a job, or raise what `Admission.check` raises; a refused job leaves no trace."""
        model = self._models.get(job.model)
        if model is None or job.model in self._closed:
            raise ModelGone(f"model {job.model.name} version {job.model.version} is not loaded any more")
        now = self._clock()
        width = min(model.capacity, model.in_flight + len(job.rows)) * job.rows[0].network_rows
        run = self._run_seconds(job, width)
        if job.deadline is not None:
            job.latest_start = job.deadline - run
        job.order = self._next_order()
        job.entry = entry = (self._due(job, now), job.order, job)
        ahead = model.waiting.bisect_left(entry)
        self.admission.check(job, now, self._wait_seconds(model, job, ahead) + run)
        self.admission.enter(job)
        job.remaining = len(job.rows)
        self._jobs.add(job)
        self.counters.jobs += 1
        model.waiting.add(entry)
        if job.deadline is not None:
            self._deadlines.add((job.deadline, job.order, job))
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
        # A copy: metrics read this from their own threads while models come and go.
        return sum(model.in_flight for model in list(self._models.values()))

    def open_jobs(self) -> list[Job]:
        """The jobs that have not ended."""
        return list(self._jobs)

    def ready_rows(self) -> list[Row]:
        """The rows that hold a slot and wait for their next step."""
        return [entry[2] for queue in self._ready.values() for entry in queue]

    def load_of(self, key: ModelKey) -> ModelLoad:
        """What a model has in work, and what its steps cost."""
        model = self._models[key]
        costs = {network: cost.fit for (other, network), cost in self._costs.items() if other == key}
        return ModelLoad(model.in_flight, model.capacity, self.admission.waiting_of(key), costs)

    def batch_limit(self, model: ModelKey, network: str) -> int:
        """The most network rows that a batch of a network may have now."""
        return self._batch_limit((model, network))

    # -- schedule -----------------------------------------------------------------------------

    def schedule(self) -> tuple[Batch | None, list[tuple[Job, ServerError]]]:
        """The next batch, or None when nothing can run; and the jobs that turned out to be late."""
        ended: list[tuple[Job, ServerError]] = []
        now = self._clock()
        self._end_late(now, ended)
        while True:
            for model in self._models.values():
                self._fill_slots(model)
            group = self._next_group()
            if group is None:
                return None, ended
            rows = self._take(group, now, ended)
            if rows:
                break
        batch = Batch.of(*group, rows)
        for job in {row.job for row in rows}:
            if job.started is None:
                job.started = now
        return batch, ended

    def _fill_slots(self, model: _Model) -> None:
        """Give free slots to the rows that wait, by priority and then by arrival."""
        while model.waiting and model.free:
            job = model.waiting[0][2]
            if not job.waiting:
                model.waiting.pop(0)
                continue
            # The pools are bounded by their slots; what a row holds beyond them, e.g. predictions, counts here.
            if model.bytes_in_flight and model.bytes_in_flight + job.row_bytes > self._limits.state_bytes:
                return
            row = job.rows[job.admitted]
            row.slot = model.free.pop()
            model.bytes_in_flight += job.row_bytes
            job.admitted += 1
            self.admission.leave(job, 1)
            self._enqueue(row)

    def _end_late(self, now: float, ended: list[tuple[Job, ServerError]]) -> None:
        """End the jobs whose deadline has passed, those that still wait for slots included."""
        while self._deadlines and self._deadlines[0][0] <= now:
            job = self._deadlines[0][2]
            ended.append((job, self._end(job, DeadlineExceeded("the deadline passed between two steps"), "late")))

    def _next_group(self) -> Group | None:
        """The queue whose model and kind have had the least device time; of equals, the one due first."""
        candidates = (
            (self._device_seconds[group[0], group[2]], queue[0][:2], group)
            for group, queue in self._ready.items()
            if queue
        )
        return min(candidates, default=(0.0, (0.0, 0), None), key=lambda candidate: candidate[:2])[2]

    def _take(self, group: Group, now: float, ended: list[tuple[Job, ServerError]]) -> list[Row]:
        queue = self._ready[group]
        limit = self._batch_limit(group[:2])
        rows: list[Row] = []
        taken = 0
        while queue:
            row = queue[0][2]
            if self._ends_early(row, now, ended):
                heapq.heappop(queue)
                self._free(row)
                continue
            taken += row.network_rows
            if rows and taken > limit:
                break
            rows.append(heapq.heappop(queue)[2])
        return rows

    def _batch_limit(self, network: tuple[ModelKey, str]) -> int:
        """Network rows that are predicted to fit in the step budget, at least one."""
        cost = self._costs.get(network)
        if cost is None:
            return self._limits.max_batch_rows
        return max(1, min(self._limits.max_batch_rows, cost.rows_within(self._limits.step_seconds)))

    def _ends_early(self, row: Row, now: float, ended: list[tuple[Job, ServerError]]) -> bool:
        """Whether a row is to leave before its next step; ends its job the first time.

        A job is late when even full batches, one right after the other, would miss its deadline:
        what it still took would be lost for the others.
        """
        job = row.job
        if job.ended:
            return True
        if job.deadline is None:
            return False
        network = (job.model, row.current.network)
        width = min(self._models[job.model].in_flight, self._batch_limit(network))
        left = len(row.program.lines) - row.line
        if job.deadline >= now + left * self._round_seconds(network, width):
            return False
        error = DeadlineExceeded(f"{left} steps are left, and the deadline comes before they can be taken")
        ended.append((job, self._end(job, error, "late")))
        return True

    # -- complete -----------------------------------------------------------------------------

    def complete(self, batch: Batch, seconds: float) -> list[tuple[Job, ServerError | None]]:
        """Account for a batch that ran: rows go on, or leave; returns the jobs that ended.

        A row's `failure` ends its whole job, and nobody else's.
        """
        network_rows = batch.network_rows
        cost = self._costs.setdefault((batch.model, batch.network), StepCost())
        cost.record(network_rows, seconds)
        cost.recorded_at = self._clock()
        self._device_seconds[batch.model, batch.kind] += seconds
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
                    self._forget(job)
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
        self._forget(job)
        return error

    def _forget(self, job: Job) -> None:
        """Mark a job as ended and drop every reference to it but those of its rows in flight."""
        job.ended = True
        self._jobs.discard(job)
        if job.entry is not None:
            self._models[job.model].waiting.discard(job.entry)
        if job.deadline is not None:
            self._deadlines.discard((job.deadline, job.order, job))

    def _enqueue(self, row: Row) -> None:
        line = row.current
        group = (row.job.model, line.network, line.kind)
        queue = self._ready.setdefault(group, [])
        if not queue:
            self._join((group[0], group[2]))
        heapq.heappush(queue, (self._due(row.job, self._clock()), self._next_order(), row))

    def _join(self, share: tuple[ModelKey, str]) -> None:
        """A queue that was empty joins at the level of those that were not: no credit for idle time."""
        others = [self._device_seconds[g[0], g[2]] for g, queue in self._ready.items() if queue]
        had = self._device_seconds.get(share, 0.0)
        self._device_seconds[share] = max(had, min(others, default=had))

    @staticmethod
    def _due(job: Job, now: float) -> float:
        """When a row of the job is due that joins a queue now (see the module's text)."""
        return max(
            min(now + PATIENCE_SECONDS - job.priority * PRIORITY_SECONDS, job.latest_start), now - URGENCY_SECONDS
        )

    def _round_seconds(self, network: tuple[ModelKey, str], network_rows: int) -> float:
        """Predicted time for all of `network_rows` to take one step of a network; 0 where none was measured lately."""
        cost = self._costs.get(network)
        if cost is None or not network_rows:
            return 0.0
        batches = ceil(network_rows / self._batch_limit(network))
        seconds = batches * cost.seconds(network_rows / batches)
        return seconds if self._clock() - cost.recorded_at <= STALE_SECONDS + 2.0 * seconds else 0.0

    def _run_seconds(self, job: Job, network_rows: int) -> float:
        """Predicted seconds of a job once its rows have slots: one round a line, beside the other kinds at work."""
        lines = Counter((line.network, line.kind) for line in job.rows[0].program.lines)
        seconds = sum(n * self._round_seconds((job.model, network), network_rows) for (network, _), n in lines.items())
        shares = {(group[0], group[2]) for group, queue in self._ready.items() if queue}
        return seconds * len(shares | {(job.model, kind) for _, kind in lines})

    def _wait_seconds(self, model: _Model, job: Job, jobs_ahead: int) -> float:
        """Predicted seconds until a job with so many jobs ahead of it has slots for all its rows."""
        rows = jobs_ahead * self.admission.waiting_of(job.model) / max(1, len(model.waiting)) + len(job.rows)
        missing = rows - len(model.free)
        return self.admission.drain.seconds(missing) if missing > 0 else 0.0

    def _free(self, row: Row) -> None:
        model = self._models[row.job.model]
        model.free.append(row.slot)
        model.bytes_in_flight -= row.job.row_bytes
        row.slot = -1

    def _next_order(self) -> int:
        self._order += 1
        return self._order
