"""What the batcher takes and what it refuses, with an injected clock: bounds, deadlines and predictions."""

from __future__ import annotations

import pytest

from server.errors import DeadlineExceeded, InvalidArgument, NotFound, Overloaded, Unavailable
from server.loop.admission import DrainRate
from server.types import ModelKey
from tests.server.world import World


def test_a_request_that_could_never_wait_is_a_bad_request():
    """A job larger than the whole byte budget is refused for good, not told to retry."""
    with pytest.raises(InvalidArgument, match="bytes"):
        World(max_waiting_bytes=100).submit(1, rows=20)


def test_an_expired_request_is_not_admitted():
    """A deadline in the past is refused, and leaves no trace."""
    world = World()
    with pytest.raises(DeadlineExceeded):
        world.submit(1, deadline=0.0)
    assert world.batcher.idle


def test_a_full_queue_refuses_with_a_delay_from_the_drain_rate():
    """RESOURCE_EXHAUSTED's delay is the time that the measured rate needs for what waits."""
    world = World(capacity=2, max_waiting_rows=10)
    world.submit(1, rows=10)
    world.step(seconds=0.5)
    assert world.batcher.admission.waiting_rows == 8
    with pytest.raises(Overloaded) as refused:
        world.submit(1, rows=5)
    assert refused.value.retry_seconds == pytest.approx(8 * 0.5 / 2)
    assert len(world.run()) == 4
    world.submit(1, rows=5)


def test_waiting_bytes_are_bounded():
    """The byte budget refuses what the row budget would let in."""
    world = World(capacity=1, max_waiting_bytes=100)
    world.submit(1, rows=12)
    with pytest.raises(Overloaded, match="bytes"):
        world.submit(1, rows=2)


def test_more_rows_than_a_request_may_have_are_a_bad_request():
    """One request cannot ask for more than its bound, however empty the queue."""
    with pytest.raises(InvalidArgument, match="count"):
        World(max_rows_per_request=8).submit(1, rows=9)


def test_a_closed_server_and_an_unknown_model_refuse():
    """Draining refuses with Unavailable, an unknown model with NotFound."""
    world = World()
    with pytest.raises(NotFound):
        world.submit(1, model=ModelKey("nope", 1))
    world.batcher.admission.open = False
    with pytest.raises(Unavailable):
        world.submit(1)


def test_a_cold_start_is_not_held_against_anyone():
    """A first batch that takes long says nothing about the others: a deadline that they can meet is not refused."""
    world = World()
    world.submit(1)
    world.step(seconds=5.0)
    for _ in range(2):
        world.submit(1)
        world.step(seconds=0.01)
    world.submit(10, deadline=world.now + 1.0)


def test_a_slow_spell_does_not_refuse_for_good():
    """After a slow batch a deadline is refused on its word, but not when nothing has been measured for a while."""
    world = World()
    for seconds in (0.01, 1.0):  # the first one is cold, and does not count
        world.submit(1)
        world.step(seconds=seconds)
    with pytest.raises(DeadlineExceeded):
        world.submit(10, deadline=world.now + 5.0)
    world.now += 10.0
    job = world.submit(10, deadline=world.now + 5.0)
    for _ in range(10):
        world.step(seconds=0.01)
    assert world.ended[job] is None
    world.submit(10, deadline=world.now + 5.0)


def test_a_few_small_batches_refuse_nothing():
    """After batches of one row alone, a wide job with a deadline is still taken: its cost cannot be told yet."""
    world = World()
    for _ in range(2):
        world.submit(1)
        world.step(seconds=0.01)
    world.submit(100, rows=48, deadline=world.now + 10.0)


def test_drain_rate_forgets():
    """The rate follows what happened lately."""
    rate = DrainRate(half_life=1.0)
    for _ in range(50):
        rate.record(10, 1.0)
    assert rate.seconds(20) == pytest.approx(2.0, rel=0.01)
    for _ in range(20):
        rate.record(1, 1.0)
    assert rate.seconds(20) == pytest.approx(20.0, rel=0.01)


def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    """With steps measured at one second, four steps in three seconds are refused; in five they are taken."""
    world = World()
    world.submit(2)
    world.run()
    with pytest.raises(DeadlineExceeded, match="predicted to take 4 s"):
        world.submit(4, deadline=world.now + 3.0)
    job = world.submit(4, deadline=world.now + 5.0)
    world.run()
    assert world.ended[job] is None
