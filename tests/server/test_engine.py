"""The engine's thread: it tells every job once, whatever listeners do, and nobody waits for a loop that has ended."""

from __future__ import annotations

import threading

import pytest

from models.program import Line, Program, assign
from server.config import Limits
from server.errors import Unavailable
from server.loop import engine as engine_module
from server.loop.engine import Engine
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
