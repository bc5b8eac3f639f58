"""The engines of all devices as one: a request runs where it is done first, its rows on several devices if need be."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..types import Job, ModelKey, Row
from .admission import MAX_RETRY_SECONDS, MIN_RETRY_SECONDS
from .engine import Engine
from .load import ModelLoad
from .protocols import Runner
from .split import DeviceLoad, Split, share_out


class Totals(NamedTuple):
    """What all devices have in work, and since the start: requests taken, batches run and their network rows, rows that
    left by reason."""

    requests_open: int
    rows_in_flight: int
    rows_waiting: int
    bytes_waiting: int
    requests: int
    batches: int
    batch_rows: int
    rows_left: dict[str, int]


class Engines:
    """One engine a device. `submit` and `cancel` may be called from any thread."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = tuple(engines)
        self._splits: dict[Job, Split] = {}
        self._lock = threading.Lock()
        self._uncounted = 0  # parts that engines count as requests, beyond the one that stands for its request

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._engines)

    def __len__(self) -> int:
        return len(self._engines)

    # -- requests -------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Queue a job: its rows go where they are predicted to be done first, on one device or shared out.

        Raises: as `Engine.submit`.
        """
        if len(self._engines) == 1:
            self._engines[0].submit(job)
            return
        loads = self._device_loads(job)
        widths = share_out(len(job.rows), loads)
        works = [load.seconds(width) - load.ahead for load, width in zip(loads, widths, strict=True)]
        if max(widths) == len(job.rows):
            job.device = widths.index(len(job.rows))
            job.work = works[job.device]
            self._engines[job.device].submit(job)
        else:
            self._submit_split(job, Split(job, widths, works, self._forget))

    def _submit_split(self, job: Job, split: Split) -> None:
        self._splits[job] = split
        try:
            split.submit(self._engines)
        except BaseException:
            self._forget(job)
            self._discount(split.taken)
            raise
        self._discount(split.taken - 1)

    def _discount(self, parts: int) -> None:
        with self._lock:
            self._uncounted += parts

    def _device_loads(self, job: Job) -> list[DeviceLoad]:
        """What each device has before it, and what a job's rows cost there.

        What a device has not run yet another one may have; where nothing is known, steps are counted.
        """
        program, wide = job.rows[0].program, job.rows[0].network_rows
        known = [engine.batcher.prediction.usual_cost(job.model, program.line_counts) for engine in self._engines]
        usual = next(filter(None, known), (0.0, 1e-6 * len(program.lines)))
        costs = [cost or usual for cost in known]
        return [
            DeviceLoad(engine.batcher.work, fixed, wide * per_row)
            for engine, (fixed, per_row) in zip(self._engines, costs, strict=True)
        ]

    def _forget(self, job: Job) -> None:
        self._splits.pop(job, None)

    def cancel(self, job: Job) -> None:
        """The caller is gone; `on_done` is not called."""
        split = self._splits.pop(job, None)
        if split is not None:
            split.cancel()
        else:
            self._engines[job.device].cancel(job)

    def retry_seconds(self, rows: int) -> float:
        """A sensible delay before trying again behind `rows` rows."""
        each = [engine.batcher.admission.drain.retry_seconds(rows) for engine in self._engines]
        return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, min(each) / len(each)))

    # -- models ---------------------------------------------------------------------------------

    def add_model(self, key: ModelKey, runners: Sequence[Runner]) -> None:
        """Make a warmed-up model known; jobs for it may be submitted from now on. runners: one a device."""
        for engine, runner in zip(self._engines, runners, strict=True):
            engine.add_model(key, runner)

    def remove_model(self, key: ModelKey) -> None:
        """Refuse new jobs of a model, wait for those that it has, and forget it."""
        for engine in self._engines:
            engine.close_model(key)
        for engine in self._engines:
            engine.remove_model(key)

    # -- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        for engine in self._engines:
            engine.start()

    @property
    def started(self) -> float:
        """When, on the engines' clock."""
        return self._engines[0].started

    @property
    def alive(self) -> bool:
        """Whether every device's thread runs."""
        return all(engine.alive for engine in self._engines)

    @property
    def open(self) -> bool:
        """Whether new jobs are taken."""
        return all(engine.batcher.admission.open for engine in self._engines)

    @property
    def step_seconds(self) -> float:
        """How long the oldest running step has been going on; 0 where none runs."""
        return max(engine.step_seconds for engine in self._engines)

    def close_admission(self) -> None:
        """From now on every new job is refused with Unavailable."""
        for engine in self._engines:
            engine.close_admission()

    def drain(self, seconds: float) -> bool:
        """Wait until no job is left, at most `seconds` on the whole. Returns whether that was reached."""
        end = self._engines[0].now() + seconds
        drained = [engine.drain(max(0.0, end - engine.now())) for engine in self._engines]
        return all(drained)

    def stop(self) -> bool:
        """End all loops after the running steps. Returns whether all ended; see `Engine.stop`."""
        stopped = [engine.stop() for engine in self._engines]
        return all(stopped)

    # -- what they tell -------------------------------------------------------------------------

    def totals(self) -> Totals:
        """Without a lock: numbers of one moment each."""
        batchers = [engine.batcher for engine in self._engines]
        further = sum(max(0, split.open - 1) for split in list(self._splits.values()))
        left: Counter[str] = Counter()
        for batcher in batchers:
            left.update(dict(batcher.counters.rows_left))  # a copy: the engine's thread may add a reason meanwhile
        return Totals(
            requests_open=sum(batcher.jobs for batcher in batchers) - further,
            rows_in_flight=sum(batcher.rows_in_flight for batcher in batchers),
            rows_waiting=sum(batcher.admission.waiting_rows for batcher in batchers),
            bytes_waiting=sum(batcher.admission.waiting_bytes for batcher in batchers),
            requests=sum(batcher.counters.jobs for batcher in batchers) - self._uncounted,
            batches=sum(batcher.counters.batches for batcher in batchers),
            batch_rows=sum(batcher.counters.batch_rows for batcher in batchers),
            rows_left=dict(left),
        )

    def snapshot(self) -> tuple[dict[ModelKey, ModelLoad], list[Row]]:
        """As `Engine.snapshot`, over all devices; costs are those of the first device that has measured some."""
        loads: dict[ModelKey, ModelLoad] = {}
        rows: list[Row] = []
        for engine in self._engines:
            own, at_work = engine.snapshot()
            rows += at_work
            for key, load in own.items():
                loads[key] = loads[key].beside(load) if key in loads else load
        return loads, rows
