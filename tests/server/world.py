"""A batcher on a clock that the test moves, for the tests of scheduling."""

from __future__ import annotations

from collections.abc import Callable

from models.program import LangevinUpdate, Line, Program, Update, assign
from server.config import Limits
from server.errors import ServerError
from server.loop.batcher import Batcher
from server.loop.cohorts import Cohorts
from server.types import Batch, Job, ModelKey, Row

MODEL, OTHER = ModelKey("a", 1), ModelKey("b", 1)
ENSEMBLE = assign()
WEIGHTED = Update(ENSEMBLE.rule, history=(1.0,))
LANGEVIN = Update(LangevinUpdate(*[0.0] * 7), output=1)


def program(steps: int, *, network: str = "denoiser", guided: bool = False, kind: str = "ensemble") -> Program:
    """kind: of its lines; `weighted` ones weight the predictions of the lines before, and keep them."""
    updates = {"ensemble": (ENSEMBLE,), "langevin": (LANGEVIN,), "score": (), "weighted": (WEIGHTED,)}[kind]
    return Program(0.0, 1.0, (Line(network, guided=guided, updates=updates),) * steps)


class World:
    """A batcher with a clock that the test moves, and everything that it was told."""

    def __init__(self, capacity: int = 256, cohorts: Cohorts | None = None, turn: int = 1, **limits) -> None:
        self.now = 0.0
        self.limits = Limits(**({"step_seconds": 1e9} | limits))
        self.batcher = Batcher(self.limits, lambda: self.now, cohorts, turn=turn)
        self.capacity = capacity
        for key in (MODEL, OTHER):
            self.batcher.add_model(key, capacity)
        self.ended: dict[Job, ServerError | None] = {}

    def submit(
        self, steps: int, rows: int = 1, *, model: ModelKey = MODEL, priority: int = 0, deadline=None, **kwargs
    ) -> Job:
        job = Job(model, lambda *_: None, priority=priority, deadline=deadline, row_bytes=8)
        compiled = program(steps, **kwargs)
        job.rows = [Row(job, 0, i, compiled) for i in range(rows)]
        self.batcher.submit(job)
        return job

    def note(self, ended) -> None:
        for job, error in ended:
            assert job not in self.ended, "a job ended twice"
            self.ended[job] = error

    def step(
        self, seconds: float | Callable[[Batch], float] = 1.0, fail=lambda row: None, meanwhile=lambda: None
    ) -> Batch | None:
        """Schedule, run for `seconds`, which may depend on the batch (with `meanwhile` happening), complete."""
        batch, ended = self.batcher.schedule()
        self.note(ended)
        if batch is not None:
            slots = [(row.job.model, row.slot) for row in batch.rows]
            kept = [(row.job.model, place) for row in batch.rows for place in row.kept]
            for places in (slots, kept):
                assert len(set(places)) == len(places), "a slot is used twice"
                assert all(0 <= place < self.capacity for _, place in places)
            assert all(len(row.kept) == row.program.kept_predictions for row in batch.rows)
            for row in batch.rows:
                row.failure = fail(row)
            meanwhile()
            took = seconds(batch) if callable(seconds) else seconds
            self.now += took
            self.note(self.batcher.complete(batch, took))
        return batch

    def run(self, limit: int = 10_000) -> list[Batch]:
        batches = []
        while (batch := self.step()) is not None:
            batches.append(batch)
            assert len(batches) < limit
        return batches
