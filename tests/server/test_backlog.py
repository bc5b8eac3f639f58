"""The wait of calls that no handler has been given yet, from how many there are and how fast they are taken up."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from server.api.backlog import LOOK_CALLS, MOST_CALLS, PAUSE_SECONDS, Backlog


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def take(backlog: Backlog, clock: Clock, calls: int, seconds: float) -> None:
    """Handlers are given calls, so many seconds apart, and end each at once."""
    for _ in range(calls):
        clock.now += seconds
        with backlog:
            pass


def test_the_wait_is_the_time_that_those_before_take():
    clock = Clock()
    backlog = Backlog(lambda: 501, clock=clock)
    take(backlog, clock, LOOK_CALLS, 0.0004)
    assert backlog.calls == 500  # the one that is being handled does not wait
    assert backlog.seconds == pytest.approx(0.2)


def test_calls_that_handlers_have_do_not_wait():
    clock = Clock()
    opened = [LOOK_CALLS]
    backlog = Backlog(lambda: opened[0], clock=clock)
    with ExitStack() as handlers:
        for _ in range(LOOK_CALLS):
            clock.now += 0.001
            handlers.enter_context(backlog)
        take(backlog, clock, 2 * LOOK_CALLS, 0.001)
        assert backlog.seconds == 0.0
        opened[0] = LOOK_CALLS + 10
        take(backlog, clock, 4 * LOOK_CALLS, 0.001)
        assert backlog.seconds == pytest.approx(0.009)  # beside the one that is being handled


def test_a_server_that_is_not_busy_does_not_look():
    looks = []
    clock = Clock()
    backlog = Backlog(lambda: looks.append(clock.now) or 0, clock=clock)
    take(backlog, clock, LOOK_CALLS - 1, 1.0)
    assert looks == []
    take(backlog, clock, 1, 1.0)
    assert len(looks) == 1


def test_looks_are_few_while_nobody_waits():
    """gRPC does not free what a look gets; and one that finds calls waiting is followed by more."""
    looks: list[float] = []
    opened = [0]
    clock = Clock()
    backlog = Backlog(lambda: looks.append(clock.now) or opened[0], clock=clock)
    take(backlog, clock, 100 * MOST_CALLS, 0.001)
    assert len(looks) <= 105
    opened[0] = 1000
    take(backlog, clock, MOST_CALLS, 0.0005)
    assert backlog.seconds == pytest.approx(0.5, rel=0.1), "by the time of the last calls alone"
    before = len(looks)
    take(backlog, clock, 10 * LOOK_CALLS, 0.0005)
    assert len(looks) - before >= 9


def test_the_time_before_a_burst_does_not_count():
    """After an hour of silence a crowd comes: it takes as long as its calls take, and not hours."""
    clock = Clock()
    backlog = Backlog(lambda: 101, clock=clock)
    clock.now += 3600
    take(backlog, clock, LOOK_CALLS, 0.0002)
    assert backlog.seconds <= 100 * (PAUSE_SECONDS + LOOK_CALLS * 0.0002) / LOOK_CALLS


def test_the_wait_ends_with_the_backlog():
    clock = Clock()
    opened = [1000]
    backlog = Backlog(lambda: opened[0], clock=clock)
    take(backlog, clock, LOOK_CALLS, 0.001)
    assert backlog.seconds > 0.9
    opened[0] = 1
    take(backlog, clock, LOOK_CALLS, 0.001)
    assert (backlog.seconds, backlog.calls) == (0.0, 0)


def test_calls_that_are_no_more_do_not_wait():
    """After the last of a crowd nobody looks: what it said is forgotten as fast as it would have been worked off."""
    clock = Clock()
    backlog = Backlog(lambda: 501, clock=clock)
    take(backlog, clock, LOOK_CALLS, 0.001)
    clock.now += 0.4
    assert backlog.seconds == pytest.approx(0.1)
    clock.now += 3600
    assert backlog.seconds == 0.0
