"""Lone jobs: run by the thread that submits them, the device lent to it meanwhile; under load nobody runs so."""

from __future__ import annotations

import queue
import random
import threading

import pytest

from models.program import Line, Program, assign
from server.config import Limits
from server.errors import Unavailable
from server.loop.company import LOOK_EVERY, MEMORY, Company
from server.loop.engine import Engine
from server.loop.protocols import DeviceLost
from server.loop.runner import FinishedStep
from server.types import Batch, Job, ModelKey, Row

KEY = ModelKey("model", 1)
STEP_SECONDS = 0.001
LIMIT = 0.002


def program(steps: int) -> Program:
    return Program(0.0, 1.0, (Line("network", updates=(assign(),)),) * steps)


class Runner:
    """Writes down which thread ran each batch, and does what it is told to do then."""

    capacity = 8

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.then = lambda batch: None

    def enqueue(self, batch: Batch) -> FinishedStep:
        self.threads.append(threading.current_thread())
        self.then(batch)
        return FinishedStep(0.0)


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def died() -> queue.SimpleQueue:
    return queue.SimpleQueue()


@pytest.fixture
def engine(runner: Runner, died: queue.SimpleQueue):
    engine = Engine(Limits(), at_once_seconds=LIMIT, clock=lambda: 0.0, on_death=died.put)
    engine.add_model(KEY, runner)
    for _ in range(4):
        engine.batcher.prediction.record((KEY, "network"), 1, STEP_SECONDS)
    for _ in range(3 * MEMORY):  # jobs have been alone for long
        engine._company.arrive(0)
    engine.start()
    yield engine
    engine.stop()


def submit(engine: Engine, steps: int = 1, rows: int = 1, **options) -> tuple[Job, queue.SimpleQueue]:
    ended: queue.SimpleQueue = queue.SimpleQueue()
    job = Job(KEY, lambda job, error: ended.put(error), **options)
    job.rows = [Row(job, 0, i, program(steps)) for i in range(rows)]
    engine.submit(job)
    return job, ended


def look(engine: Engine) -> None:
    """Let the next job be the first one after a look."""
    while engine._company.arrive(0):
        pass


def test_a_lone_short_job_has_ended_when_it_has_been_submitted(engine: Engine, runner: Runner):
    look(engine)
    job, ended = submit(engine, steps=2)
    assert job.ended
    assert ended.get_nowait() is None
    assert runner.threads == [threading.current_thread()] * 2
    assert engine.batcher.idle
    assert engine.batcher.rows_in_flight == 0


@pytest.mark.parametrize("job", [{"steps": 3}, {"rows": 3}, {"on_preview": lambda row, line: None}])
def test_a_job_that_is_long_or_shown_is_left_to_the_engine(engine: Engine, runner: Runner, job: dict):
    look(engine)
    _, ended = submit(engine, **job)
    assert ended.get(timeout=5) is None
    assert threading.current_thread() not in runner.threads


def test_what_a_job_takes_must_be_known(runner: Runner):
    engine = Engine(Limits(), at_once_seconds=LIMIT)
    engine.add_model(KEY, runner)
    for _ in range(3 * MEMORY):
        engine._company.arrive(0)
    engine.start()
    look(engine)
    _, ended = submit(engine)
    assert ended.get(timeout=5) is None
    assert threading.current_thread() not in runner.threads
    engine.stop()


def test_one_that_comes_meanwhile_waits_for_the_device_and_is_run_by_the_engine(engine: Engine, runner: Runner):
    """From another thread, as the submitting one is busy; the rest of the lone job is the engine's, too."""
    look(engine)
    others: list[queue.SimpleQueue] = []

    def meanwhile(batch: Batch) -> None:
        if not others:
            other = threading.Thread(target=lambda: others.append(submit(engine)[1]))
            other.start()
            other.join(5)

    runner.then = meanwhile
    _, ended = submit(engine, steps=2)
    assert ended.get(timeout=5) is None
    assert others[0].get(timeout=5) is None
    assert runner.threads[0] is threading.current_thread()
    assert threading.current_thread() not in runner.threads[1:]


def test_a_device_that_is_lost_ends_the_engine(engine: Engine, runner: Runner, died: queue.SimpleQueue):
    look(engine)

    def lost(batch: Batch) -> None:
        raise DeviceLost("an illegal address")

    runner.then = lost
    _, ended = submit(engine)
    assert "an illegal address" in str(ended.get(timeout=5))
    assert isinstance(died.get(timeout=5), DeviceLost)
    with pytest.raises(Unavailable):
        submit(engine)


def test_a_stop_waits_for_it(engine: Engine, runner: Runner):
    """And ends what it has left, once: the loop does not end beside a thread that runs its steps."""
    look(engine)
    stopped: queue.SimpleQueue = queue.SimpleQueue()
    stopper = threading.Thread(target=lambda: stopped.put(engine.stop()))

    def stop(batch: Batch) -> None:
        stopper.start()
        while not engine._stopping:  # set at the beginning of the stop
            pass
        assert engine.alive

    runner.then = stop
    _, ended = submit(engine, steps=2)
    assert stopped.get(timeout=5) is True
    assert isinstance(ended.get(timeout=5), Unavailable)
    assert len(runner.threads) == 1
    assert ended.empty()


def test_a_job_cancelled_meanwhile_leaves_nothing_behind(engine: Engine, runner: Runner):
    """Its rows give their slots back, so that the model can go."""
    look(engine)

    def cancel(batch: Batch) -> None:
        other = threading.Thread(target=engine.cancel, args=(batch.rows[0].job,))
        other.start()
        other.join(5)

    runner.then = cancel
    job, ended = submit(engine, steps=2)
    assert job.ended
    assert ended.empty()
    remover = threading.Thread(target=engine.remove_model, args=(KEY,), daemon=True)
    remover.start()
    remover.join(5)
    assert not remover.is_alive()


# -- who is alone ---------------------------------------------------------------------------------------


def test_nobody_is_taken_to_be_alone_before_it_is_known():
    company = Company()
    assert [company.arrive(0) for _ in range(MEMORY)] == [False] * MEMORY


def test_jobs_that_never_meet_are_alone_but_for_the_looks():
    company = Company()
    for _ in range(3 * MEMORY):
        company.arrive(0)
    assert sum(company.arrive(0) for _ in range(10 * LOOK_EVERY)) == 10 * (LOOK_EVERY - 1)


def test_company_that_only_looks_can_see_ends_it_soon_and_for_as_long_as_it_stays():
    """Many clients before an event loop that runs steps: others are seen only while the engine's thread has a job."""
    company = Company()
    for _ in range(3 * MEMORY):
        company.arrive(0)
    while company.arrive(0):
        pass
    alone = 0
    for _ in range(100):
        if company.arrive(0):
            alone += 1
            continue
        for _ in range(7):  # the others, while that job runs
            assert not company.arrive(1)
    assert alone == LOOK_EVERY - 1


@pytest.mark.parametrize(("share", "most"), [(0.05, True), (0.5, False)])
def test_a_few_meetings_are_no_company(share: float, most: bool):
    """Requests that come at random, at a low rate and at a high one."""
    draws = random.Random(7)
    company = Company()
    alone = sum(company.arrive(int(draws.random() < share)) for _ in range(5000)) / 5000
    assert (alone > 0.6) == most
    assert most or alone < 0.05
