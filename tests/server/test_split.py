"""Rows of one request on several devices: shared out so that the last is done first, and one request to its caller."""

from __future__ import annotations

import threading
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.config import Limits
from server.errors import Overloaded, StepFailed
from server.loop.engine import Engine
from server.loop.engines import Engines
from server.loop.runner import FinishedStep
from server.loop.split import WORTH, DeviceLoad, share_out
from server.types import Batch, Job, Row

from .test_engine import KEY, PROGRAM, Runner
from .test_engines import two_devices

seconds = st.floats(0.0, 1.0)
loads = st.lists(st.builds(DeviceLoad, seconds, seconds, st.floats(1e-6, 1.0)), min_size=1, max_size=3)


def end(loads: list[DeviceLoad], widths: tuple[int, ...] | list[int]) -> float:
    """When the last row is done."""
    return max(load.seconds(width) for load, width in zip(loads, widths, strict=True) if width)


@settings(max_examples=200, deadline=None)
@given(loads, st.integers(1, 7))
def test_the_last_row_is_done_first(loads: list[DeviceLoad], rows: int):
    """Of all ways to share the rows out none is sooner by more than a further device has to be worth, and one row."""
    widths = share_out(rows, loads)
    assert sum(widths) == rows
    assert min(widths) >= 0
    ways = [way for way in product(range(rows + 1), repeat=len(loads)) if sum(way) == rows]
    best = min(end(loads, way) for way in ways)
    assert end(loads, widths) <= best / WORTH + max(load.per_row for load in loads) + 1e-9


@pytest.mark.parametrize(
    ("loads", "rows", "widths"),
    [
        ([DeviceLoad(0.0, 0.0, 1.0), DeviceLoad(0.0, 0.0, 1.0)], 16, [8, 8]),
        ([DeviceLoad(0.0, 0.0, 1.0), DeviceLoad(0.0, 0.0, 3.0)], 16, [12, 4]),
        ([DeviceLoad(4.0, 0.0, 1.0), DeviceLoad(0.0, 0.0, 1.0)], 16, [6, 10]),
        ([DeviceLoad(99.0, 0.0, 1.0), DeviceLoad(0.0, 0.0, 1.0)], 16, [0, 16]),
        (
            [DeviceLoad(0.0, 10.0, 0.01), DeviceLoad(0.0, 10.0, 0.01)],
            16,
            [16, 0],
        ),  # 1 % sooner
        ([DeviceLoad(0.0, 10.0, 0.0), DeviceLoad(0.0, 9.0, 0.0)], 16, [0, 16]),
        (
            [DeviceLoad(500.0, 0.0, 1.0), DeviceLoad(500.0, 0.0, 1.0)],
            16,
            [16, 0],
        ),  # behind much
        ([DeviceLoad(0.0, 0.0, 1.0)] * 3, 1, [1, 0, 0]),
        ([DeviceLoad(0.0, 0.0, 1.0)] * 3, 5, [2, 2, 1]),
    ],
)
def test_shares(loads: list[DeviceLoad], rows: int, widths: list[int]):
    assert sorted(share_out(rows, loads)) == sorted(widths)
    assert end(loads, share_out(rows, loads)) == pytest.approx(end(loads, widths))


class Call:
    """A caller who counts what it is told."""

    def __init__(self, engines: Engines, rows: int, **options) -> None:
        self.errors: list[object] = []
        self.done = threading.Event()
        self.job = Job(KEY, self.on_done, **options)
        self.job.rows = [Row(self.job, 0, i, PROGRAM) for i in range(rows)]
        engines.submit(self.job)

    def on_done(self, job: Job, error) -> None:
        assert job is self.job
        self.errors.append(error)
        self.done.set()


def test_a_request_on_two_devices_is_one_to_its_caller_and_in_the_totals():
    """Told once, when both parts are done; its times are those of the longer one, its batches those of both."""
    engines, runners = two_devices()
    call = Call(engines, 6)
    assert [len(engine.batcher.open_jobs()[0].rows) for engine in engines] == [3, 3]
    assert engines.totals()[:2] == (1, 6)
    engines.start()
    assert all(runner.running.wait(20) for runner in runners)
    runners[0].go_on.set()
    first, second = engines
    assert first.drain(20)
    assert not call.done.is_set()
    assert engines.totals().requests_open == 1
    runners[1].go_on.set()
    assert call.done.wait(20)
    assert engines.drain(20)
    assert call.errors == [None]
    assert (call.job.batches, call.job.batch_rows) == (2, 6)
    assert call.job.compute_seconds > 0.0
    assert call.job.started is not None
    totals = engines.totals()
    assert (totals.requests, totals.requests_open, totals.rows_left) == (1, 0, {"finished": 6})
    assert first.batcher.work == second.batcher.work == 0.0
    engines.stop()


def test_a_caller_who_leaves_leaves_nothing_on_either_device():
    """And is not told."""
    engines, runners = two_devices()
    call = Call(engines, 6)
    engines.cancel(call.job)
    engines.cancel(call.job)
    engines.start()
    assert engines.drain(20)
    assert not any(runner.running.is_set() for runner in runners)
    assert call.errors == []
    assert (engines.totals().requests_open, engines.totals().rows_left) == (0, {"cancelled": 6})
    engines.stop()


class BrokenRunner(Runner):
    def enqueue(self, batch: Batch) -> FinishedStep:
        raise RuntimeError("broken")


def test_a_part_that_fails_fails_the_request_once():
    """At once; the other part is not waited for, and ends."""
    engines = Engines([Engine(Limits()), Engine(Limits())])
    held = Runner()
    engines.add_model(KEY, [BrokenRunner(), held])
    call = Call(engines, 6)
    engines.start()
    assert call.done.wait(20)
    held.go_on.set()
    assert engines.drain(20)
    assert [type(error) for error in call.errors] == [StepFailed]
    assert engines.totals().requests_open == 0
    engines.stop()


def test_a_request_that_one_device_refuses_is_on_neither():
    """The part that was taken is taken back, and it does not count as a request."""
    engines, _ = two_devices(Limits(max_waiting_rows=1))
    first, second = engines
    other = Job(KEY, lambda job, error: None)
    other.rows = [Row(other, 0, i, PROGRAM) for i in range(Runner.capacity + 1)]
    second.submit(other)
    with pytest.raises(Overloaded):
        Call(engines, 6)
    assert first.batcher.idle
    assert second.batcher.open_jobs() == [other]
    totals = engines.totals()
    assert (totals.requests, totals.requests_open, totals.rows_left) == (1, 1, {"cancelled": 3})


def test_the_engines_thread_may_end_parts_while_others_are_submitted():
    """Many at a time, on loops that run: each is told once, and nothing is left."""
    engines, runners = two_devices()
    for runner in runners:
        runner.go_on.set()
    engines.start()
    calls = [Call(engines, 1 + number % 9) for number in range(200)]
    assert all(call.done.wait(20) for call in calls)
    assert engines.drain(20)
    assert all(call.errors == [None] for call in calls)
    totals = engines.totals()
    assert (totals.requests, totals.requests_open) == (200, 0)
    assert totals.rows_left == {"finished": sum(1 + number % 9 for number in range(200))}
    assert [engine.batcher.work for engine in engines] == pytest.approx([0.0, 0.0])
    engines.stop()


def test_a_part_that_failed_fails_the_request_though_another_one_tells_first():
    """Both have ended, and the one that failed has not been told of yet."""
    engines, _ = two_devices()
    call = Call(engines, 6)
    good, bad = (engine.batcher.open_jobs()[0] for engine in engines)
    good.ended = bad.ended = True
    good.on_done(good, None)
    assert call.errors == []
    failure = StepFailed("broken")
    bad.on_done(bad, failure)
    assert call.errors == [failure]
