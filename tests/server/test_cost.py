"""What steps cost, and how wide batches become for it."""

from __future__ import annotations

import pytest

from server.config import Limits
from server.loop.cost import StepCost
from tests.server.world import MODEL, World


def test_a_batch_is_cut_to_the_step_budget():
    """Once steps were measured at 10 ms a row, a 50 ms budget takes 5 rows a batch, and at least one."""
    world = World(step_seconds=0.05)
    for _ in range(2):  # the first batch, which pays for what is set up once, does not count
        world.submit(1, rows=4)
        world.step(seconds=0.04)
    world.submit(1, rows=20)
    assert len(world.step(seconds=0.05).rows) == 5
    slow = World(step_seconds=0.001)
    slow.submit(4)
    slow.step(seconds=1.0)
    slow.step(seconds=1.0)
    assert len(slow.step(seconds=1.0).rows) == 1


def test_step_cost_recovers_a_line():
    """The fit finds fixed cost and cost per row from batches of mixed sizes, and follows a change."""
    cost = StepCost()
    for _ in range(3):
        for rows in (1, 2, 8, 32):
            cost.record(rows, 0.002 + 0.0005 * rows)
    assert cost.fit == pytest.approx((0.002, 0.0005), rel=1e-6)
    assert cost.rows_within(0.0101) == 16
    for _ in range(100):
        for rows in (1, 8, 32):
            cost.record(rows, 0.001 * rows)
    assert cost.seconds(10) == pytest.approx(0.01, rel=0.02)


def test_a_batch_is_cut_to_the_step_budget_but_not_below_what_is_worth_its_fixed_cost():
    """Rows that fit into the budget, where there are some; else as many as make half of the step's time."""

    def limit(fixed: float, per_row: float) -> int:
        world = World(step_seconds=0.02)
        for rows in (1, 4, 16, 4, 1, 16):
            world.batcher.prediction.record((MODEL, "denoiser"), rows, fixed + per_row * rows)
        return world.batcher.prediction.batch_rows((MODEL, "denoiser"))

    assert limit(fixed=0.001, per_row=0.001) == 19
    assert limit(fixed=0.0, per_row=0.5) == 1
    assert limit(fixed=0.03, per_row=0.001) == 30
    assert limit(fixed=0.03, per_row=0.03) == 1
    assert limit(fixed=0.03, per_row=1e-6) == Limits().max_batch_rows


def run(world: World, steps: int, fixed: float, per_row: float) -> list[int]:
    """Take steps that cost so much; returns how many rows each had."""
    widths = []
    for _ in range(steps):
        batch, _ = world.batcher.schedule()
        seconds = fixed + per_row * len(batch.rows)
        world.now += seconds
        world.batcher.complete(batch, seconds)
        widths.append(len(batch.rows))
    return widths


@pytest.mark.parametrize("before", [3, 2000])
@pytest.mark.parametrize("rows", [1, 2])
def test_small_batches_do_not_hide_what_large_ones_would_save(rows: int, before: int):
    """A step of 18 ms and half a millisecond a row, as large networks have on a GPU: requests that came a few at a time
    all look alike, and still a crowd gets wide batches as soon as it is there."""
    world = World(step_seconds=0.02)
    for _ in range(before):
        world.submit(1, rows=rows)
        run(world, 1, 0.018, 0.0005)
    for _ in range(40):
        world.submit(8, rows=4)
    widths = run(world, 12, 0.018, 0.0005)
    assert sum(width >= 30 for width in widths) >= 8, widths


def test_long_rows_stay_alone_but_for_two_that_are_tried():
    """Rows of half a second each, of which two take twice as long: batches of one, once that is known."""
    world = World(step_seconds=0.02)
    world.submit(50, rows=4)
    widths = run(world, 60, 0.0, 0.5)
    assert widths[:2] == [4, 4]  # nothing is known yet: the first does not count
    assert widths.count(1) >= 56, widths


def test_a_batch_grows_with_the_root_of_what_waits():
    """Of all batch sizes the one by which rows of eight steps are done soonest in the mean, or that of the budget."""
    fixed, per_row = 0.01, 0.0025
    world = World(step_seconds=0.02)
    for rows in (1, 4, 16, 4, 1, 16):
        world.batcher.prediction.record((MODEL, "denoiser"), rows, fixed + per_row * rows)

    def mean_seconds(waiting: int, rows: int) -> float:
        return 8 * waiting * (fixed / rows + per_row) + fixed + per_row * rows

    for waiting in (5, 20, 60, 100):
        found = world.batcher.prediction.batch_rows((MODEL, "denoiser"), waiting)
        best = min(range(1, 257), key=lambda rows: mean_seconds(waiting, rows))
        assert abs(found - best) <= 1, (waiting, found, best)
    assert world.batcher.prediction.batch_rows((MODEL, "denoiser"), 4) == 4
    assert world.batcher.prediction.batch_rows((MODEL, "denoiser"), 10**6) == Limits().max_batch_rows
