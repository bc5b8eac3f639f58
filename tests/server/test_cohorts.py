"""Request-level batching, the mode to compare with: who starts together is answered together."""

from __future__ import annotations

import pytest

from server.errors import Cancelled, DeadlineExceeded, StepFailed
from server.loop.cohorts import Cohorts

from .world import OTHER, World


@pytest.fixture
def world() -> World:
    return World(cohorts=Cohorts())


def test_a_cohort_is_answered_together(world: World):
    """A 1-step request that starts beside an 8-step one waits for it; in a batch of steps it would not."""
    long, short = world.submit(8), world.submit(1)
    for _ in range(7):
        assert world.step() is not None
        assert not world.ended
    world.step()
    assert world.ended == {long: None, short: None}
    stepwise = World()
    stepwise.submit(8)
    short = stepwise.submit(1)
    stepwise.step()
    assert stepwise.ended == {short: None}


def test_nobody_joins_a_running_cohort(world: World):
    """Requests that come while a cohort runs wait for the next one, and then run together."""
    world.submit(3)
    world.step()
    late = [world.submit(1), world.submit(2)]
    assert [len(world.step().rows) for _ in range(2)] == [1, 1]
    assert len(world.step().rows) == 2
    world.step()
    assert world.ended == dict.fromkeys([*world.ended], None)
    assert set(late) <= set(world.ended)
    assert world.step() is None


def test_cohorts_are_no_wider_than_a_batch():
    """More rows than fit into a batch make several cohorts, one after the other; guided rows count twice."""
    world = World(cohorts=Cohorts(), max_batch_rows=4)
    world.submit(2, rows=3, guided=True)
    world.submit(2, rows=4)
    assert [batch.network_rows for batch in world.run()] == [4, 4, 4, 4, 2, 2]
    assert world.batcher.idle


def test_models_have_cohorts_of_their_own(world: World):
    """One model's long cohort does not hold back another model's."""
    world.submit(8)
    short = world.submit(1, model=OTHER)
    world.step()
    world.step()
    assert world.ended == {short: None}


def test_who_leaves_early_holds_nobody_back(world: World):
    """Cancelled, failed and late rows leave their cohort, and the rest is answered with its last row."""
    cancelled, failed, rest = world.submit(5), world.submit(5), world.submit(2)
    late = world.submit(5, deadline=2.5)
    world.step(fail=lambda row: StepFailed("broken") if row.job is failed else None)
    world.batcher.end(cancelled, Cancelled("gone"), "cancelled")
    world.run()
    assert world.ended[rest] is None
    assert isinstance(world.ended[failed], StepFailed)
    assert isinstance(world.ended[late], DeadlineExceeded)
    assert world.batcher.idle
    assert world.batcher.rows_in_flight == 0


def test_a_request_that_waits_for_its_cohort_can_still_be_late(world: World):
    """Its rows are done, but the cohort is not when its deadline passes; the others are answered all the same."""
    long, done = world.submit(6), world.submit(1, deadline=3.5)
    world.run()
    assert world.ended[long] is None
    assert isinstance(world.ended[done], DeadlineExceeded)


def test_a_removed_model_leaves_nothing_behind(world: World):
    """After its cohorts are done a model can go and come back."""
    world.submit(2)
    world.run()
    key = next(iter(world.ended)).model
    world.batcher.close_model(key)
    assert world.batcher.model_idle(key)
    world.batcher.remove_model(key)
    world.batcher.add_model(key, 4)
    job = world.submit(1)
    world.run()
    assert world.ended[job] is None
