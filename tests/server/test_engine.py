"""The engine's thread: it tells every job once, whatever listeners do, and nobody waits for a loop that has ended."""

from __future__ import annotations

import queue
import threading

import pytest

from models.program import Line, Program, assign
from server.config import Limits
from server.errors import Unavailable
from server.loop import engine as engine_module
from server.loop.engine import Engine
from server.loop.protocols import DeviceLost
from server.loop.runner import FinishedStep
from server.types import Batch, Job, ModelKey, Row

KEY = ModelKey("model", 1)
PROGRAM = Program(0.0, 1.0, (Line("network", updates=(assign(),)),))


class Runner:
    """Stands in for a model: runs until it is let go."""

    capacity = 8

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.running = threading.Event()

    def enqueue(self, batch: Batch) -> FinishedStep:
        self.running.set()
        self.go_on.wait(20)
        return FinishedStep(0.0)


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def engine(runner: Runner):
    engine = Engine(Limits())
    engine.add_model(KEY, runner)
    engine.start()
    yield engine
    runner.go_on.set()
    engine.stop()


def submit(engine: Engine, on_done, rows: int = 1) -> Job:
    job = Job(KEY, on_done)
    job.rows = [Row(job, 0, i, PROGRAM) for i in range(rows)]
    engine.submit(job)
    return job


def test_a_listener_that_raises_hurts_nobody_else(engine: Engine, runner: Runner):
    """The other jobs of the step are told, and the loop goes on."""
    told = threading.Semaphore(0)

    def bad(job, error):
        raise RuntimeError("listener bug")

    submit(engine, bad)
    runner.running.wait(5)
    submit(engine, bad)
    submit(engine, lambda job, error: told.release())
    runner.go_on.set()
    assert told.acquire(timeout=5)
    submit(engine, lambda job, error: told.release())
    assert told.acquire(timeout=5)
    assert engine.alive


def test_unloading_does_not_wait_for_an_engine_that_has_ended(engine: Engine, runner: Runner):
    """A model with rows in flight can be removed once the loop has ended: nobody else would end them."""
    submit(engine, lambda job, error: None, rows=4)
    runner.running.wait(5)
    remover = threading.Thread(target=engine.remove_model, args=(KEY,), daemon=True)
    remover.start()
    stopper = threading.Thread(target=engine.stop, daemon=True)
    stopper.start()
    runner.go_on.set()
    stopper.join(5)
    remover.join(5)
    assert not stopper.is_alive()
    assert not remover.is_alive()


def test_a_stop_does_not_wait_for_a_step_that_hangs(engine: Engine, runner: Runner, monkeypatch: pytest.MonkeyPatch):
    """After its bound the stop gives up on the step, ends its jobs with Unavailable, and says so."""
    monkeypatch.setattr(engine_module, "STOP_SECONDS", 0.2)
    errors = []
    submit(engine, lambda job, error: errors.append(error))
    runner.running.wait(5)
    assert engine.stop() is False
    assert [type(error) for error in errors] == [Unavailable]


class Device:
    """Takes batches at once, and ends each when it is told to."""

    capacity = 64

    def __init__(self) -> None:
        self.taken: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        self.ending = threading.Semaphore(0)

    def enqueue(self, batch: Batch) -> Device:
        self.taken.put(Batch.of(batch.model, batch.network, batch.kind, list(batch.rows)))
        return self

    def finish(self) -> float:
        assert self.ending.acquire(timeout=20)
        return 0.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_who_comes_while_a_long_step_runs_is_in_the_next_one():
    """A busy device is given its next batch shortly before it needs it, and not as soon as it could be."""
    clock, device = Clock(), Device()
    engine = Engine(Limits(step_seconds=60.0), clock=clock, depth=2)
    engine.add_model(KEY, device)
    for _ in range(3):
        engine.batcher.prediction.record((KEY, "network"), 1, 0.2)
    engine.start()
    steps = Program(0.0, 1.0, (Line("network", updates=(assign(),)),) * 3)

    def submit_steps() -> Job:
        job = Job(KEY, lambda job, error: None)
        job.rows = [Row(job, 0, 0, steps)]
        engine.submit(job)
        return job

    first = submit_steps()
    assert device.taken.get(timeout=5).rows == first.rows
    second = submit_steps()
    clock.now = 0.1
    third = submit_steps()
    assert device.taken.empty()
    clock.now = 0.16  # of 0.2 seconds
    submit_steps()  # may be in it, or come just too late
    assert set(device.taken.get(timeout=5).rows) >= {row for job in (first, second, third) for row in job.rows}
    for _ in range(20):
        device.ending.release()
    assert engine.stop()


def test_a_device_whose_steps_are_short_is_given_the_next_at_once():
    """Where a step takes no longer than the host needs for the next, there is nothing to wait for."""
    clock, device = Clock(), Device()
    engine = Engine(Limits(), clock=clock, depth=2)
    engine.add_model(KEY, device)
    for _ in range(3):
        engine.batcher.prediction.record((KEY, "network"), 1, 0.001)
    engine.start()
    job = Job(KEY, lambda job, error: None)
    job.rows = [Row(job, 0, 0, Program(0.0, 1.0, (Line("network", updates=(assign(),)),) * 2))]
    engine.submit(job)
    assert device.taken.get(timeout=5).rows == job.rows
    assert device.taken.get(timeout=5).rows == job.rows
    for _ in range(2):
        device.ending.release()
    assert engine.drain(10)
    assert engine.stop()


def test_a_model_stays_while_the_device_has_a_batch_of_it():
    """Its rows may have gone already, when their callers have: the device still works on what belongs to the model."""
    device = Device()
    engine = Engine(Limits(), depth=2)
    engine.add_model(KEY, device)
    engine.start()
    job = Job(KEY, lambda job, error: None)
    job.rows = [Row(job, 0, 0, Program(0.0, 1.0, (Line("network", updates=(assign(),)),) * 50))]
    engine.submit(job)
    device.taken.get(timeout=5)
    device.taken.get(timeout=5)
    engine.cancel(job)
    remover = threading.Thread(target=engine.remove_model, args=(KEY,), daemon=True)
    remover.start()
    device.ending.release()  # the first batch ends, and the row leaves
    remover.join(0.3)
    assert remover.is_alive(), "the second batch is still on the device"
    device.ending.release()
    remover.join(5)
    assert not remover.is_alive()
    assert engine.alive
    assert engine.stop()


def test_a_lost_device_ends_the_engine():
    """A server that can but fail is not to look healthy: the loop ends, with word to whoever runs it."""
    told: list[BaseException] = []
    errors: queue.SimpleQueue = queue.SimpleQueue()

    class Lost(Device):
        def finish(self) -> float:
            raise DeviceLost("an illegal address")

    engine = Engine(Limits(), depth=2, on_death=told.append)
    engine.add_model(KEY, Lost())
    engine.start()
    submit(engine, lambda job, error: errors.put(error))
    assert "an illegal address" in str(errors.get(timeout=5))
    engine.stop()
    assert not engine.alive
    assert [type(error) for error in told] == [DeviceLost]


def test_a_batch_that_could_not_run_teaches_nothing_of_its_cost():
    """It ends at once, and would make every later prediction too low."""

    class Broken(Device):
        def enqueue(self, batch: Batch) -> Device:
            raise ValueError("bug")

    engine = Engine(Limits(), depth=2)
    engine.add_model(KEY, Broken())
    for _ in range(3):
        engine.batcher.prediction.record((KEY, "network"), 1, 0.5)
    engine.start()
    ended = threading.Semaphore(0)
    for _ in range(5):
        submit(engine, lambda job, error: ended.release())
        assert ended.acquire(timeout=5)
    assert engine.batcher.prediction.costs_of(KEY)["network"] == (0.0, 0.5)
    assert engine.stop()
