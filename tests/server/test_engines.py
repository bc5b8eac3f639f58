"""Several devices: jobs go where there is least work, and none is told twice or forgotten."""

from __future__ import annotations

import threading

import pytest

from models.program import Line, Program, assign
from server.config import Limits
from server.loop.engine import Engine
from server.loop.engines import Engines
from server.types import Job, ModelKey, Row

from .test_engine import KEY, Runner


def program(lines: int) -> Program:
    return Program(0.0, 1.0, (Line("network", updates=(assign(),)),) * lines)


def submit(engines: Engines, lines: int, on_done=lambda job, error: None) -> Job:
    job = Job(KEY, on_done)
    job.rows = [Row(job, 0, 0, program(lines))]
    engines.submit(job)
    return job


def two_devices(limits: Limits | None = None) -> tuple[Engines, list[Runner]]:
    engines = Engines([Engine(limits or Limits()) for _ in range(2)])
    runners = [Runner(), Runner()]
    engines.add_model(KEY, runners)
    return engines, runners


def test_a_job_goes_to_the_device_with_the_least_work():
    """By the steps that are left to take where nothing has been measured; ended and cancelled jobs weigh nothing."""
    engines, _ = two_devices()
    long = submit(engines, 50)
    assert [submit(engines, 10).device for _ in range(5)] == [1] * 5
    assert submit(engines, 1).device == 0
    engines.cancel(long)
    assert submit(engines, 10).device == 0


def test_work_is_weighed_by_what_it_costs():
    """Two steps of a network that takes long are more than ten of one that does not."""
    engines, _ = two_devices()
    for engine in engines:
        for _ in range(3):
            engine.batcher.prediction.record((KEY, "network"), 1, 0.01)
            engine.batcher.prediction.record((KEY, "slow"), 1, 1.0)
    slow = Job(KEY, lambda job, error: None)
    slow.rows = [Row(slow, 0, 0, Program(0.0, 1.0, (Line("slow", updates=(assign(),)),) * 2))]
    engines.submit(slow)
    assert slow.device == 0
    assert [submit(engines, 10).device for _ in range(10)] == [1] * 10


def test_a_device_that_was_idle_for_long_is_weighed_as_before():
    """What its steps cost is not forgotten, nor what another device knows of a model that it has not run."""
    engines, _ = two_devices()
    first, second = engines
    for _ in range(3):
        first.batcher.prediction.record((KEY, "network"), 1, 0.01)
    first.batcher.prediction._costs[KEY, "network"].recorded_at = -1e6
    devices = [submit(engines, 10).device for _ in range(20)]
    assert sorted(devices) == [0] * 10 + [1] * 10
    assert second.batcher.work == pytest.approx(first.batcher.work)


def test_jobs_of_all_devices_end_once_and_leave_no_work():
    """With both loops running."""
    engines, runners = two_devices()
    for runner in runners:
        runner.go_on.set()
    engines.start()
    told: list[Job] = []
    done = threading.Semaphore(0)

    def on_done(job, error):
        told.append(job)
        done.release()

    jobs = [submit(engines, 1 + number % 7, on_done) for number in range(100)]
    for _ in jobs:
        assert done.acquire(timeout=20)
    assert engines.drain(20)
    assert sorted(map(id, told)) == sorted(map(id, jobs))
    assert {job.device for job in jobs} == {0, 1}
    assert [abs(engine.batcher.work) < 1e-9 for engine in engines] == [True, True]
    totals = engines.totals()
    assert (totals.requests, totals.requests_open, totals.rows_in_flight) == (100, 0, 0)
    assert totals.rows_left == {"finished": 100}
    engines.remove_model(KEY)
    assert engines.stop()
    assert not engines.alive


def test_loads_are_summed_over_the_devices():
    """A model has the slots of both."""
    engines, _ = two_devices()
    submit(engines, 3)
    submit(engines, 3)
    loads, rows = engines.snapshot()
    assert loads[ModelKey("model", 1)].capacity == 2 * Runner.capacity
    assert loads[ModelKey("model", 1)].in_flight == 2
    assert len(rows) == 2
