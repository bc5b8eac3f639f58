"""Batches that are given to a device before those ahead of them have ended (`Batcher.go_on`)."""

from __future__ import annotations

import random
from collections import deque

import pytest

from server.errors import Cancelled, DeadlineExceeded, Internal
from server.types import Batch, Job

from .world import MODEL, World


class Ahead(World):
    """A device that holds up to `depth` batches; what a batch gave is known when it ends."""

    def __init__(self, depth: int, turn: int = 1, **options) -> None:
        super().__init__(turn=turn, **options)
        self.depth = depth
        self.flights: deque[tuple[Batch, list[int]]] = deque()

    def enqueue(self) -> Batch | None:
        batch, ended = self.batcher.schedule()
        self.note(ended)
        if batch is not None:
            slots = [(row.job.model, row.slot) for row in batch.rows]
            assert len(set(slots)) == len(slots), "a slot is used twice"
            self.flights.append((batch, [row.line for row in batch.rows]))
            self.batcher.go_on(batch)
        return batch

    def complete(self, fail=lambda row, line: None, seconds: float = 1.0) -> Batch:
        batch, lines = self.flights.popleft()
        self.now += seconds
        for row, line in zip(batch.rows, lines, strict=True):
            row.failure = row.failure or fail(row, line)
        self.note(self.batcher.complete(batch, seconds))
        return batch


def test_rows_are_in_the_next_batch_before_theirs_has_ended():
    """The next step of the same rows is scheduled at once, and what came meanwhile joins it."""
    world = Ahead(2)
    job = world.submit(3, rows=2)
    first = world.enqueue()
    late = world.submit(1)
    second = world.enqueue()
    assert set(second.rows) == {*first.rows, *late.rows}
    assert [row.line for row in first.rows] == [2, 2]
    world.complete()
    assert not world.ended
    world.complete()
    assert world.ended == {late: None}
    assert world.enqueue().rows == job.rows
    world.complete()
    assert world.ended == {late: None, job: None}
    assert world.batcher.rows_in_flight == 0


def test_a_failure_ends_a_job_whose_row_has_gone_on():
    """The row's next step runs in vain, and its slot is given back once, after that."""
    world = Ahead(2)
    job = world.submit(4)
    world.enqueue()
    world.enqueue()
    error = Internal("NaN")
    world.complete(fail=lambda row, line: error)
    assert world.ended == {job: error}
    assert world.batcher.rows_in_flight == 1
    world.complete()
    assert world.enqueue() is None
    assert world.batcher.rows_in_flight == 0
    assert world.batcher.idle


def test_a_caller_who_leaves_takes_the_row_along_after_the_steps_that_were_given():
    """Nothing is done twice, whatever the batches are that the row is in."""
    world = Ahead(3)
    job = world.submit(2)
    world.enqueue()
    world.enqueue()
    world.batcher.end(job, Cancelled("gone"), "cancelled")
    world.complete()
    world.complete()
    assert world.enqueue() is None
    assert world.batcher.rows_in_flight == 0


def test_a_job_is_late_by_when_its_step_can_begin():
    """Not by when it is given to a device that is still busy: its step would then be taken in vain."""
    world = Ahead(2)
    for _ in range(3):
        world.submit(1)
        world.enqueue()
        world.complete(seconds=1.0)
    start = world.now
    world.submit(1)
    world.enqueue()
    tight, loose = world.submit(1, deadline=start + 1.5), world.submit(1, deadline=start + 2.5)
    batch, ended = world.batcher.schedule(start + 1.0)
    assert [job for job, _ in ended] == [tight]
    assert isinstance(ended[0][1], DeadlineExceeded)
    assert batch.rows == loose.rows


def alone(world: Ahead, **options) -> list[int]:
    """The steps of the batches of one job, when a few batches have told what a step costs."""
    for _ in range(3):
        world.submit(1, kind="langevin")
        world.enqueue()
        world.complete(seconds=0.01)
    world.submit(10, kind="langevin", **options)
    steps = []
    while world.enqueue() is not None:
        steps.append(world.flights[0][0].steps)
        world.complete(seconds=0.01 * steps[-1])
    return steps


def test_rows_that_are_alone_take_several_steps_in_a_turn():
    """As many as were allowed, up to the end of the program and to the time of a batch; one while others wait."""
    assert alone(Ahead(2, turn=4, turn_seconds=1.0)) == [4, 4, 2]
    assert alone(Ahead(2, turn=4, turn_seconds=0.025)) == [2, 2, 2, 2, 2]
    assert alone(Ahead(2, turn=1, turn_seconds=1.0)) == [1] * 10
    assert alone(Ahead(2, turn=4, turn_seconds=1.0, capacity=2), rows=3) == [1] * 10 + [4, 4, 2]


def test_a_turn_costs_what_its_steps_cost():
    """Totals and predictions count steps, however many are taken at once."""
    world = Ahead(2, turn=4, turn_seconds=1.0)
    assert sum(alone(world)) == 10
    assert world.batcher.counters.batches == 13
    assert world.batcher.prediction.round_seconds((MODEL, "denoiser"), 1) == pytest.approx(0.01)


@pytest.mark.parametrize("seed", range(20))
def test_every_row_takes_its_lines_once_and_in_order(seed: int):
    """Random jobs, failures and callers who leave: every job ends once, every slot comes back, and no row of a job
    that was not ended skips or repeats a line."""
    rng = random.Random(seed)
    world = Ahead(
        rng.choice((2, 3)), turn=rng.choice((1, 4)), capacity=rng.choice((3, 16)), max_batch_rows=rng.choice((2, 8))
    )
    jobs: list[Job] = []
    lines: dict[int, int] = {}
    left: set[Job] = set()

    def enqueue() -> None:
        batch = world.enqueue()
        for row, line in zip(batch.rows, world.flights[-1][1], strict=True) if batch is not None else ():
            assert line == lines.get(id(row), -1) + 1
            lines[id(row)] = line + batch.steps - 1

    for _ in range(600):
        action = rng.random()
        if action < 0.15 and len(jobs) < 60:
            jobs.append(world.submit(rng.randint(1, 6), rows=rng.randint(1, 4), guided=rng.random() < 0.2))
        elif action < 0.2 and jobs:
            job = rng.choice(jobs)
            if world.batcher.end(job, Cancelled("gone"), "cancelled"):
                left.add(job)
        elif action < 0.6 and len(world.flights) < world.depth:
            enqueue()
        elif world.flights:
            world.complete(fail=lambda row, line: Internal("NaN") if rng.random() < 0.01 else None)
    while world.flights or not world.batcher.idle or world.batcher.rows_in_flight:
        enqueue()
        if world.flights:
            world.complete()
    assert set(world.ended) | left == set(jobs)
    assert not set(world.ended) & left
    for job in jobs:
        if world.ended.get(job, "left") is None:
            assert [lines[id(row)] + 1 for row in job.rows] == [len(row.program.lines) for row in job.rows]
