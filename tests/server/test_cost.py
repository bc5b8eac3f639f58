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
        return world.batcher.batch_limit(MODEL, "denoiser")

    assert limit(fixed=0.001, per_row=0.001) == 19
    assert limit(fixed=0.0, per_row=0.5) == 1
    assert limit(fixed=0.03, per_row=0.001) == 30
    assert limit(fixed=0.03, per_row=0.03) == 1
    assert limit(fixed=0.03, per_row=1e-6) == Limits().max_batch_rows
