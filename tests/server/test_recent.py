"""What the status page remembers: right numbers, for the right time, in bounded memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.program import Line, Program, assign
from server.observability.recent import COLUMN_SECONDS, COLUMNS, MAX_ERRORS, Recent, steps_left_class
from server.types import Batch, Job, ModelKey, Row

KEY = ModelKey("model", 1)
LANE = ("model", "network")


class Clock:
    """Time as the test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recent(clock: Clock) -> Recent:
    return Recent(clock, clock)


def program(steps: int) -> Program:
    return Program(0.0, 1.0, (Line("network", updates=(assign(),)),) * steps)


def rows(*left: int) -> list[Row]:
    """Rows after a step, with so many steps left; those with none have lost their slot."""
    job = Job(KEY, lambda job, error: None)
    return [Row(job, 0, i, program(max(1, steps)), slot=i if steps else -1) for i, steps in enumerate(left)]


def test_percentiles_are_within_a_cell_of_the_truth(recent: Recent):
    """Latencies from 1 to 1000 ms come back to 5 %."""
    for milliseconds in range(1, 1001):
        recent.observe_call("Sample", "OK", milliseconds / 1000, "", "")
    calls = recent.calls()["Sample"]
    assert (calls.ok, calls.failed) == (1000, 0)
    assert [calls.p50, calls.p90, calls.p99] == pytest.approx([0.5, 0.9, 0.99], rel=0.05)


def test_a_call_is_forgotten_after_a_minute(recent: Recent, clock: Clock):
    """Calls count for the last minute, and failed ones do not move the latencies."""
    recent.observe_call("Sample", "OK", 1.0, "", "")
    clock.now += 30
    recent.observe_call("Sample", "OK", 0.1, "", "")
    recent.observe_call("Sample", "INTERNAL", 9.0, "", "")
    assert (recent.calls()["Sample"].ok, recent.calls()["Sample"].failed) == (2, 1)
    clock.now += 31
    assert (recent.calls()["Sample"].ok, recent.calls()["Sample"].p99) == (1, pytest.approx(0.1, rel=0.05))
    clock.now += 61
    assert recent.calls() == {}


def test_calls_of_no_length_count(recent: Recent):
    """A call that ended at once, as far as the clock could tell, is counted."""
    recent.observe_call("Sample", "OK", 0.0, "", "")
    assert recent.calls()["Sample"].ok == 1


def test_a_flood_of_one_code_leaves_the_others(recent: Recent, clock: Clock):
    """The errors of each code are bounded by themselves, the newest first; gone callers are none."""
    recent.observe_call("Score", "INTERNAL", 0.1, "rare", "lost?")
    recent.observe_call("Score", "CANCELLED", 0.1, "", "")
    for number in range(10_000):
        clock.now += 0.001
        recent.observe_call("Sample", "INVALID_ARGUMENT", 0.1, str(number), "x" * 10_000)
    errors = recent.errors()
    assert len(errors) == MAX_ERRORS + 1
    assert (errors[0].request_id, errors[-1].request_id, errors[-1].text) == ("9999", "rare", "lost?")
    assert max(len(error.text) for error in errors) < 400


def test_a_batch_fills_the_columns_that_it_ran_in(recent: Recent, clock: Clock):
    """Its seconds and rows are spread over its time, and it is counted once."""
    clock.now = 1000.0 + 2.5 * COLUMN_SECONDS
    recent.observe_step(Batch.of(KEY, "network", "ensemble", rows(0, 1, 2, 3, 9)), 5, 2 * COLUMN_SECONDS)
    cells = [column[LANE] for column in recent.batches() if LANE in column]
    assert [cell.seconds / COLUMN_SECONDS for cell in cells] == pytest.approx([0.5, 1.0, 0.5])
    assert [cell.batches for cell in cells] == [0, 0, 1]
    assert [cell.rows for cell in cells] == [0, 0, 5]
    for cell in cells:
        assert [value / cell.seconds for value in cell.row_seconds] == pytest.approx([1, 1, 2, 0, 1])


def test_batches_are_forgotten(recent: Recent, clock: Clock):
    """The picture ends with the present, and what is older than its first column is gone."""
    recent.observe_step(Batch.of(KEY, "network", "ensemble", rows(1)), 1, 0.0)
    clock.now += (COLUMNS - 1) * COLUMN_SECONDS
    assert [index for index, column in enumerate(recent.batches()) if column] in ([0], [1])
    clock.now += 2 * COLUMN_SECONDS
    assert not any(recent.batches())
    recent.observe_step(Batch.of(KEY, "network", "ensemble", rows(1)), 1, 3600.0)
    assert len(recent.batches()) == COLUMNS == sum(LANE in column for column in recent.batches())


def test_rows_are_classed_by_the_steps_they_have_left():
    """0, 1, 2-3, 4-7, 8 and more."""
    left = (0, 1, 2, 3, 4, 7, 8, 500)
    assert [steps_left_class(row) for row in rows(*left)] == [0, 1, 2, 2, 3, 3, 4, 4]


def test_readers_and_writers_do_not_disturb_each_other():
    """Threads that read while others write find whole numbers, and nothing is lost."""
    recent = Recent()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            recent.batches(), recent.calls(), recent.errors()

    with ThreadPoolExecutor(2) as readers:
        reading = [readers.submit(read) for _ in range(2)]
        try:
            write(recent)
        finally:
            done.set()
        for reader in reading:
            reader.result(10)
    assert sum(calls.ok + calls.failed for calls in recent.calls().values()) == 3000


def write(recent: Recent) -> None:
    for number in range(3000):
        recent.observe_call(f"rpc {number % 7}", "OK" if number % 2 else f"CODE {number % 11}", 0.1, "", "")
        recent.observe_step(Batch.of(KEY, f"network {number % 5}", "ensemble", rows(1, 2)), 2, 1e-4)
