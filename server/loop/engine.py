"""The engine: one thread a device, and its loop of three verbs, schedule -> enqueue -> complete.

On the CPU a step has run when it has been enqueued. On a GPU the next one is scheduled and enqueued while it runs, so
that the device never waits for the host.

A short job that has the device to itself may be run by the thread that submits it, which spares it the way to the
engine's thread and back. The device is lent for that time: the engine's thread does not touch it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from ..config import Limits
from ..errors import Cancelled, Internal, ServerError, StepFailed, Unavailable
from ..types import Batch, Job, ModelKey, Row
from .batcher import Batcher
from .cohorts import Cohorts
from .company import Company
from .load import ModelLoad
from .protocols import DeviceLost, NetworkError, Runner, Step
from .step_records import record_step

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""How long a stop waits for the running step."""

LEAD_SECONDS = 0.002
SAFE_SHARE = 0.75
"""A batch is given to a busy device so long before the running one is predicted to end, of whose time that share is
counted on: the host needs a part of it, and who comes until then is in the batch."""

StepObserver = Callable[[Batch, float], None]


@dataclass(slots=True, eq=False)
class _Flight:
    """A batch that the device has been given, its steps (several where it was split), and the lines of its rows."""

    batch: Batch
    enqueued: float
    lines: list[int]
    steps: list[Step] = field(default_factory=list)


class Engine:
    """Runs jobs on one device. `submit` and `cancel` may be called from any thread."""

    def __init__(
        self,
        limits: Limits,
        *,
        name: str = "engine",
        batching: str = "step",
        depth: int = 1,
        turn: int = 1,
        at_once_seconds: float = 0.0,
        clock: Callable[[], float] = perf_counter,
        on_step: StepObserver | None = None,
        on_death: Callable[[BaseException], None] | None = None,
        traces: bool = False,
    ) -> None:
        """name: of its thread. batching: by `step`, or by `request` as `Cohorts` do it.

        depth: how many batches the device is given ahead, the one that runs included. turn: how many steps in a row one
        may take while nobody else waits.
        at_once_seconds: how long `submit` may take to run a job that has the device to itself, before it returns; with
        0 it never runs one. Only where a step has run when it has been enqueued.
        on_step is told of every batch and its seconds; on_death of an error that ended the loop itself.

        traces: whether there may be jobs with a `trace`.
        """
        self._runners: dict[ModelKey, Runner] = {}
        self._clock = clock
        self._on_step = on_step
        self._on_death = on_death
        self._traces = traces
        self._depth = depth
        self._at_once_seconds = at_once_seconds
        self._company = Company()
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)  # the engine's thread waits for it
        self._calm = threading.Condition(self._lock)  # those wait for it who need a model, or all of them, idle
        self._lent = False
        self._failure: BaseException | None = None
        self._stopping = False
        self._ended = False
        self._step_began: float | None = None
        self._flights: deque[_Flight] = deque()
        self.started = 0.0
        self.batcher = Batcher(limits, clock, Cohorts() if batching == "request" else None, turn=turn)
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def now(self) -> float:
        """The time of its clock."""
        return self._clock()

    def start(self) -> None:
        self.started = self._clock()
        self._thread.start()

    def add_model(self, key: ModelKey, runner: Runner) -> None:
        """Make a warmed-up model known; jobs for it may be submitted from now on."""
        with self._lock:
            self._runners[key] = runner
            self.batcher.add_model(key, runner.capacity)

    def close_model(self, key: ModelKey) -> None:
        """Refuse new jobs of a model; those that it has go on."""
        with self._lock:
            self.batcher.close_model(key)

    def remove_model(self, key: ModelKey) -> None:
        """Refuse new jobs of a model, wait for those that it has, and forget it."""
        with self._lock:
            self.batcher.close_model(key)
            self._calm.wait_for(lambda: self._idle(key) or self._ended)
            self.batcher.remove_model(key)
            del self._runners[key]

    def _idle(self, key: ModelKey) -> bool:
        """Nobody waits for the model, and the device has none of its batches, be their rows gone already."""
        return self.batcher.model_idle(key) and all(flight.batch.model != key for flight in self._flights)

    def snapshot(self) -> tuple[dict[ModelKey, ModelLoad], list[Row]]:
        """What each model has in work, and all rows that hold a slot; rows go on while the caller looks at them."""
        with self._lock:
            loads = {key: self.batcher.load_of(key) for key in self._runners}
            running = [row for flight in self._flights for row in flight.batch.rows]
            # A row may be in two batches of those that the device has been given.
            return loads, list(dict.fromkeys([*self.batcher.ready_rows(), *running]))

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._ended

    @property
    def step_seconds(self) -> float:
        """How long the running step has been going on; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else self._clock() - began

    def submit(self, job: Job) -> None:
        """Queue a job, or run it at once.

        Raises:
            ServerError: it is refused (see `Admission.check`), or the engine has stopped.
        """
        job.arrived = job.arrived or self._clock()
        with self._lock:
            if self._stopping:
                raise Unavailable("the engine has stopped")
            self.batcher.submit(job)
            at_once = self._at_once_seconds > 0.0 and self._may_run_at_once(job)
            if at_once:
                self._lent = True
            else:
                self._work.notify()
        if at_once:
            self._run_at_once()

    def _may_run_at_once(self, job: Job) -> bool:
        """Whether a job that was queued just now has the device to itself, and is predicted to be short."""
        alone = self._company.arrive(self.batcher.jobs - 1)
        if not alone or self._lent or self._flights or job.on_preview is not None or not self.alive:
            return False
        cost = self.batcher.prediction.usual_cost(job.model, job.rows[0].program.line_counts)
        if cost is None:
            return False
        fixed, per_row = cost
        return fixed + per_row * sum([row.network_rows for row in job.rows]) <= self._at_once_seconds

    def _run_at_once(self) -> None:
        """Run the only job in this thread, which has been lent the device, until it has ended or has company."""
        try:
            while (batch := self._lone_batch()) is not None:
                self._enqueue(batch)
                self._complete(self._flights[0])
        except BaseException as error:
            self._failure = error  # as in the loop, which ends with it
        finally:
            with self._lock:
                self._lent = False
                if self._failure or self._stopping or not self.batcher.idle or self.batcher.rows_in_flight:
                    self._work.notify()

    def _lone_batch(self) -> Batch | None:
        with self._lock:
            if self._stopping or self.batcher.jobs != 1:
                return None
            batch, ended = self.batcher.schedule()
            if batch is not None:
                self._take_off(batch)
        self._finish(ended)
        return batch

    def cancel(self, job: Job) -> None:
        """The caller is gone; `on_done` is not called."""
        with self._lock:
            self.batcher.end(job, Cancelled("the caller is gone"), "cancelled")
            self._work.notify()

    def close_admission(self) -> None:
        """From now on every new job is refused with Unavailable."""
        with self._lock:
            self.batcher.admission.open = False

    def drain(self, seconds: float) -> bool:
        """Wait until no job is left, at most `seconds`. Returns whether that was reached."""
        with self._lock:
            return self._calm.wait_for(lambda: self.batcher.idle or self._ended, timeout=seconds) and not self._ended

    def stop(self) -> bool:
        """End the loop after the running step; jobs that are left end with Unavailable.

        Returns False when that step hangs: its thread is left behind.
        """
        with self._lock:
            self._stopping = True
            self._work.notify()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            log.error("the running step did not end within %g s of the stop", STOP_SECONDS)
            self._abandon(Unavailable("the server stopped in the midst of a step"))
        return not self._thread.is_alive()

    # -- the loop -------------------------------------------------------------------------------

    def _loop(self) -> None:
        reason: ServerError = Unavailable("the server stopped before the request was done")
        try:
            while True:
                batch = self._next_batch()
                if batch is not None:
                    self._enqueue(batch)
                elif not self._flights:
                    break
                if batch is None or len(self._flights) >= self._depth:
                    self._complete(self._flights[0])
        except BaseException as error:
            # Nothing below may end the loop quietly: whatever does is a bug, and callers must not hang on it.
            log.exception("the engine's loop ended")
            reason = Internal(f"the engine stopped: {error!r}")
            if self._on_death is not None:
                self._on_death(error)
        finally:
            self._abandon(reason)

    def _next_batch(self) -> Batch | None:
        """The next batch; waits for one while the device has nothing to do.

        None when the engine is to stop, or for now when there is none while the device is busy.
        """
        while True:
            with self._lock:
                while self._lent:
                    self._work.wait()
                if self._failure is not None:
                    raise self._failure
                while not self._stopping and (early := self._early_seconds()) > 0.0:
                    self._work.wait(early)
                if self._stopping:
                    return None
                batch, ended = self.batcher.schedule(self._free_at())
                if batch is not None:
                    self._take_off(batch)
                elif not ended and not self._flights:
                    self._calm.notify_all()
                    self._work.wait()
                    continue
            self._finish(ended)
            if batch is not None or self._flights:
                return batch

    def _take_off(self, batch: Batch) -> None:
        self._flights.append(_Flight(batch, self._clock(), [row.line for row in batch.rows]))

    def _early_seconds(self) -> float:
        """How long a busy device can go without the next batch; 0 or less where it must be given now."""
        if not self._flights or self._step_began is None:
            return 0.0
        return self._step_began + SAFE_SHARE * self._predicted(self._flights[0]) - LEAD_SECONDS - self._clock()

    def _free_at(self) -> float:
        """When the device is predicted to have run all that it has been given; 0 where it has nothing."""
        if self._step_began is None:
            return 0.0
        return self._step_began + sum(self._predicted(flight) for flight in self._flights)

    def _predicted(self, flight: _Flight) -> float:
        """The seconds that a flight is predicted to take; 0 where nothing is known."""
        batch = flight.batch
        return batch.steps * self.batcher.prediction.round_seconds((batch.model, batch.network), batch.network_rows)

    def _enqueue(self, batch: Batch) -> None:
        """Give the device the newest flight's batch. What fails is a failure of its rows, not of the loop."""
        flight = self._flights[-1]
        if len(self._flights) == 1:
            self._step_began = flight.enqueued
        try:
            self._enqueue_or_split(batch, flight.steps)
        except DeviceLost:
            raise
        except Exception as error:
            self._fail(batch, error)
        if self._depth > 1:
            with self._lock:
                self.batcher.go_on(batch)

    def _enqueue_or_split(self, batch: Batch, steps: list[Step]) -> None:
        """Enqueue a batch; where the network fails, e.g. out of memory, its halves, down to the rows that do it."""
        try:
            steps.append(self._runners[batch.model].enqueue(batch))
        except NetworkError as error:
            middle = len(batch.rows) // 2
            log.warning("%s on %d rows%s", error, len(batch.rows), "; trying halves" if middle else "")
            if not middle:
                batch.rows[0].failure = StepFailed(str(error))
                return
            batch.steps = 1
            for rows in (batch.rows[:middle], batch.rows[middle:]):
                half = Batch.of(batch.model, batch.network, batch.kind, rows)
                self._enqueue_or_split(half, steps)
                batch.padding += half.padding

    def _complete(self, flight: _Flight) -> None:
        """Wait for the oldest flight, and let the batcher and the listeners know what it gave."""
        batch = flight.batch
        network_seconds = 0.0
        try:
            network_seconds = sum(step.finish() for step in flight.steps)
        except DeviceLost:
            raise
        except Exception as error:
            self._fail(batch, error)
        now = self._clock()
        # The device took it up when it was given it, or when it had done the one before.
        started = flight.enqueued if self._step_began is None else self._step_began
        seconds = now - started
        for row, line in zip(batch.rows, flight.lines, strict=True):
            if row.sample == 0 and row.job.on_preview is not None and not row.job.ended:
                _tell(row.job.on_preview, row, line)
            row.preview = None
        if self._traces:
            record_step(batch, flight.lines, started, seconds)
        with self._lock:
            ended = self.batcher.complete(batch, seconds, network_seconds)
            self._flights.popleft()
            self._step_began = now if self._flights else None
            self._calm.notify_all()
        self._finish(ended)
        if self._on_step is not None:
            _tell(self._on_step, batch, seconds)

    @staticmethod
    def _fail(batch: Batch, error: Exception) -> None:
        log.error("a step of %s failed on %d rows", batch.model, len(batch.rows), exc_info=error)
        for row in batch.rows:
            row.failure = row.failure or StepFailed(f"the step failed: {error}")

    def _abandon(self, reason: ServerError) -> None:
        with self._lock:
            self._stopping = self._ended = True
            left = [job for job in self.batcher.open_jobs() if self.batcher.end(job, reason, "failed")]
            self._calm.notify_all()
        self._finish([(job, reason) for job in left])

    @staticmethod
    def _finish(ended: list[tuple[Job, ServerError | None]]) -> None:
        for job, error in ended:
            _tell(job.on_done, job, error)


def _tell(callback: Callable[..., None], *arguments: object) -> None:
    """Call back; what a listener raises is its own trouble, and neither the loop's nor the other listeners'."""
    try:
        callback(*arguments)
    except Exception:
        log.exception("a callback of the engine failed")
