"""The step batcher: schedule -> (run) -> go on -> complete, in pure Python with an injected clock (DESIGN 1).

Rows wait in one queue for each (model, network, kind of update), whatever their step, sampler, seed
or coefficients. Two questions are answered at each step:

Which queue? The one whose (model, kind) has had the least device time; one that was empty joins at
the level of the others. So sampling, Langevin dynamics and scoring, and the models, share the
device by time, and a lone request never stands behind another model's backlog.

Which rows? Those due first (see `due`): so rows take turns, those in a hurry come first, and nothing starves.

A job whose deadline cannot be met is refused at admission where that can be predicted, and else
leaves before the first step that would be taken in vain. Under overload no kind of request crowds out another: all are
refused in the same proportion (see `crowd`).

Not thread-safe: the engine calls it under its lock.
"""

from __future__ import annotations

from collections.abc import Callable

from sortedcontainers import SortedList

from ..config import Limits
from ..errors import DeadlineExceeded, ModelGone, Overloaded, ServerError
from ..types import Batch, Job, ModelKey, Row
from .admission import Admission
from .cohorts import Cohorts
from .due import due
from .load import Counters, ModelLoad
from .prediction import Prediction
from .ready import Group, Ready
from .slots import Entry, Slots


class Batcher:
    """Queues, slots and the order in which rows run."""

    def __init__(
        self, limits: Limits, clock: Callable[[], float], cohorts: Cohorts | None = None, *, turn: int = 1
    ) -> None:
        """cohorts: batch whole requests with them, instead of steps.

        turn: how many steps rows may take in one batch while nobody else waits.
        """
        self._limits = limits
        self._turn = turn
        self._cohorts = cohorts
        self._clock = clock
        self._models: dict[ModelKey, Slots] = {}
        self._ready = Ready()
        self._returning: tuple[Group, int] | None = None  # the batch that runs: its rows that have steps left
        self._closed: set[ModelKey] = set()
        self._jobs: set[Job] = set()
        self._deadlines: SortedList[tuple[float, int, Job]] = SortedList()
        self._order = 0
        self.admission = Admission(limits)
        self.prediction = Prediction(limits, clock)
        self.counters = Counters()
        self.work = 0.0
        """Predicted seconds of the jobs that have not ended, where whoever submits them gives them some."""

    # -- models and jobs ---------------------------------------------------------------------

    def add_model(self, key: ModelKey, capacity: int) -> None:
        """Make a model known, with as many slots as its state pools hold."""
        self._models[key] = Slots(capacity)

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
        self._ready.forget(key)
        self.prediction.forget(key)
        if self._cohorts is not None:
            self._cohorts.forget(key)

    def submit(self, job: Job) -> None:
        """Admit a job, or raise what `Admission.check` and `Crowd.check` raise; a refused job leaves no rows behind."""
        model = self._models.get(job.model)
        if model is None or job.model in self._closed:
            raise ModelGone(f"model {job.model.name} version {job.model.version} is not loaded any more")
        now = self._clock()
        model.check(job)
        job.order = self._next_order()
        job.row_seconds = self.prediction.row_seconds(job, model.rows_at_once(job.rows[0]))
        if job.deadline is None:
            job.entry = entry = (due(job, now), job.order, job)
            self.admission.check(job, now, 0.0)
        else:
            entry = self._check_deadline(model, job, job.deadline, now)
        self.admission.enter(job)
        model.crowd.enter(job)
        job.remaining = len(job.rows)
        self._jobs.add(job)
        self.work += job.work
        self.counters.jobs += 1
        model.add(entry)
        if job.deadline is not None:
            self._deadlines.add((job.deadline, job.order, job))
        # Now, not at the next schedule: a row that arrives while a batch runs comes before the rows of that batch.
        self._fill_slots(model)

    def _check_deadline(self, model: Slots, job: Job, deadline: float, now: float) -> Entry:
        """Refuse a job that would be late, or is to leave room for others; returns its entry in the queue.

        It is for the others' sake only while the next batch is full anyway, so that refusing costs no throughput. Who
        is refused counts only where a full batch would have left it room: else it would be refused by any busy device,
        however little the others leave to do.
        """
        row = job.rows[0]
        lines = row.program.line_counts
        shares = self._ready.shares() | {(job.model, kind) for _, kind in lines}
        sharing = len({share[0] for share in shares})  # models among which the device is shared
        most = model.rows_at_once(row)
        width = min(most, model.in_flight + len(job.rows)) * row.network_rows
        run = len(shares) * self.prediction.run_seconds(job.model, lines, width)
        job.latest_start = deadline - run
        job.entry = entry = (due(job, now), job.order, job)
        wait = model.wait_seconds(entry, self.admission.drain, len(shares))
        group = (job.model, row.current.network, row.current.kind)
        full = min(self.prediction.batch_rows(group[:2]), most * row.network_rows)
        room = self.prediction.room(job, lines, full, (deadline - now) / sharing)
        asked = len(shares) * len(job.rows) * job.row_seconds
        try:
            self.admission.check(job, now, wait + run)
            if self._next_rows(group) * row.network_rows >= full:
                model.crowd.check(job, now, self.admission.drain)
        except (DeadlineExceeded, Overloaded):
            if room > 0:
                model.crowd.note(now, room, asked, refused=True)
            raise
        if room > 0:
            model.crowd.note(now, room, asked, refused=False)
        return entry

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
        return list(self._ready)

    def load_of(self, key: ModelKey) -> ModelLoad:
        """What a model has in work, and what its steps cost."""
        model = self._models[key]
        waiting = self.admission.waiting_of(key)
        return ModelLoad(model.in_flight, model.capacity, waiting, self.prediction.costs_of(key))

    # -- schedule -----------------------------------------------------------------------------

    def schedule(self, begins: float = 0.0) -> tuple[Batch | None, list[tuple[Job, ServerError | None]]]:
        """The next batch, or None when nothing can run; and the jobs that turned out to be late.

        begins: when the batch can begin, on a device that is still busy; whoever cannot make it from then on is late.
        """
        ended: list[tuple[Job, ServerError | None]] = []
        now = self._clock()
        self._end_late(now, ended)
        while True:
            for key, model in self._models.items():
                if model.waited_for:
                    self._fill_slots(model)
                if self._cohorts is not None:
                    self._form_cohort(self._cohorts, key)
            group = self._ready.next_group()
            if group is None:
                return None, ended
            limit = self.prediction.batch_rows(group[:2], self._ready.network_rows(group))
            rows = self._take(group, limit, max(now, begins), ended)
            if rows:
                break
        batch = Batch.of(*group, rows)
        batch.limit = limit
        batch.steps = self._steps_of_turn(batch)
        self._returning = (group, sum([row.line + batch.steps < len(row.program.lines) for row in rows]))
        for job in {row.job for row in rows}:
            if job.started is None:
                job.started = now
        return batch, ended

    def _fill_slots(self, model: Slots) -> None:
        while (row := model.give()) is not None:
            self.admission.leave(row.job, 1)
            self._enqueue(row)

    def _form_cohort(self, cohorts: Cohorts, model: ModelKey) -> None:
        if (network := cohorts.next_network(model)) is None:
            return
        for entry in cohorts.form(model, self.prediction.batch_rows((model, network))):
            self._ready.push(entry)

    def _end_late(self, now: float, ended: list[tuple[Job, ServerError | None]]) -> None:
        """End the jobs whose deadline has passed, those that still wait for slots included."""
        while self._deadlines and self._deadlines[0][0] <= now:
            job = self._deadlines[0][2]
            ended.append((job, self._end(job, DeadlineExceeded("the deadline passed between two steps"), "late")))

    def _take(self, group: Group, limit: int, begins: float, ended: list[tuple[Job, ServerError | None]]) -> list[Row]:
        """The next rows of a queue, as many network rows as the limit at most, but one row at least."""
        rows: list[Row] = []
        taken = 0
        while (row := self._ready.first(group)) is not None:
            if self._ends_early(row, begins, ended):
                self._leave(self._ready.pop(group), ended)
                continue
            taken += row.network_rows
            if rows and taken > limit:
                break
            rows.append(self._ready.pop(group))
        return rows

    def _steps_of_turn(self, batch: Batch) -> int:
        """One step; several, within the time of a turn, where nobody else waits for the device.

        Not for rows whose steps are shown.
        """
        if self._turn == 1 or self._ready or any(slots.waited_for for slots in self._models.values()):
            return 1
        if any(row.job.on_preview is not None for row in batch.rows):
            return 1
        seconds = self.prediction.round_seconds((batch.model, batch.network), batch.network_rows)
        if not seconds:
            return 1
        within = int(self._limits.turn_seconds / seconds)
        return max(1, min(self._turn, within, *(row.alike for row in batch.rows)))

    def _ends_early(self, row: Row, begins: float, ended: list[tuple[Job, ServerError | None]]) -> bool:
        """Whether a row is to leave before its next step, which can begin then; ends its job the first time.

        A job is late when even full batches, one right after the other, would miss its deadline:
        what it still took would be lost for the others.
        """
        job = row.job
        if job.ended:
            return True
        if job.deadline is None:
            return False
        network = (job.model, row.current.network)
        width = min(self._models[job.model].in_flight, self.prediction.batch_rows(network))
        left = len(row.program.lines) - row.line
        if job.deadline >= begins + left * self.prediction.round_seconds(network, width):
            return False
        error = DeadlineExceeded(f"{left} steps are left, and the deadline comes before they can be taken")
        ended.append((job, self._end(job, error, "late")))
        return True

    # -- go on and complete -------------------------------------------------------------------

    def go_on(self, batch: Batch) -> None:
        """The rows may be in another batch: what runs is in order behind this one. Those that failed do not go on."""
        self._returning = None
        batch.staying = []
        for row in batch.rows:
            if row.job.ended or row.line + batch.steps == len(row.program.lines) or row.failure is not None:
                batch.staying.append(row)
            else:
                row.line += batch.steps
                self._enqueue(row)

    def complete(
        self, batch: Batch, seconds: float, network_seconds: float = 0.0
    ) -> list[tuple[Job, ServerError | None]]:
        """Account for a batch that ran; its rows go on, unless they have, or leave. Returns the jobs that ended.

        network_seconds: how many of the seconds the network took.
        A row's `failure` ends its whole job, and nobody else's.
        """
        network_rows, steps = batch.network_rows, batch.steps
        if any(row.failure is None for row in batch.rows):  # else it may not have run at all
            self.prediction.record((batch.model, batch.network), network_rows, seconds / steps)
        self._ready.spend((batch.model, batch.kind), seconds)
        self.counters.batches += steps
        self.counters.batch_rows += steps * network_rows
        for job in {row.job for row in batch.rows}:
            job.compute_seconds += seconds
            job.network_seconds += network_seconds
            job.batches += steps
            job.batch_rows += steps * network_rows
        batch.failed = [row for row in batch.rows if row.failure is not None and not row.job.ended]
        done: list[tuple[Job, ServerError | None]] = [
            (row.job, self._end(row.job, row.failure, "failed"))
            for row in batch.failed
            if row.failure is not None and not row.job.ended
        ]
        if batch.staying is None:
            self.go_on(batch)
        finished = 0
        for row in batch.staying or ():
            if not row.job.ended:
                finished += 1
                row.job.remaining -= 1
                if row.job.remaining == 0:
                    self._finish(row.job, done)
            self._leave(row, done)
        self.admission.drain.record(finished, seconds)
        return done

    # -- helpers ------------------------------------------------------------------------------

    def _finish(self, job: Job, done: list[tuple[Job, ServerError | None]]) -> None:
        """All rows of a job are done."""
        if self._cohorts is not None:
            self._cohorts.finish(job)
        else:
            self._answer(job, done)

    def _answer(self, job: Job, done: list[tuple[Job, ServerError | None]]) -> None:
        self._forget(job)
        self.counters.left("finished", len(job.rows))
        done.append((job, None))

    def _leave(self, row: Row, done: list[tuple[Job, ServerError | None]]) -> None:
        """A row gives its slot back; in a cohort, the last one has the others' jobs answered."""
        if self._cohorts is not None:
            for job in self._cohorts.leave(row):
                if not job.ended:  # it may have waited for its cohort too long
                    self._answer(job, done)
        self._models[row.job.model].take_back(row)

    def _end(self, job: Job, error: ServerError, reason: str) -> ServerError:
        """Mark a job as ended; rows in flight are dropped where they surface next."""
        self.counters.left(reason, job.remaining)
        if job.waiting and job.entry is not None:
            self.admission.leave(job, job.waiting)
            self._models[job.model].discard(job.entry)
            self._models[job.model].crowd.leave(job, job.waiting)
            del job.rows[job.admitted :]
        self._forget(job)
        return error

    def _forget(self, job: Job) -> None:
        """Mark a job as ended and drop every reference to it but those of its rows in flight."""
        job.ended = True
        if job in self._jobs:
            self._jobs.discard(job)
            self.work -= job.work
        if job.deadline is not None:
            self._deadlines.discard((job.deadline, job.order, job))

    def _enqueue(self, row: Row) -> None:
        entry = (due(row.job, self._clock()), self._next_order(), row)
        if self._cohorts is not None and row.line == 0:
            self._cohorts.wait(entry)
        else:
            self._ready.push(entry)

    def _next_rows(self, group: Group) -> int:
        """Rows that can be in the group's next batch if no request is taken until then."""
        returning = self._returning[1] if self._returning is not None and self._returning[0] == group else 0
        return self._ready.count(group) + returning + self.admission.waiting_of(group[0])

    def _next_order(self) -> int:
        self._order += 1
        return self._order
