"""Loads are bounded before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from bench.load import Clients, LoadPlan
from bench.mix import parse_mix
from bench.schedule import Bursts, Poisson


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LoadPlan(arrivals=Poisson(0)), "rate: must be positive"),
        (lambda: LoadPlan(arrivals=Poisson(math.nan)), "rate: must be positive"),
        (lambda: LoadPlan(arrivals=Bursts(1, 0)), "arrivals: a burst must be of at least 1 request"),
        (lambda: LoadPlan(arrivals=Poisson(1e6)), "rate: at most 500000 requests"),
        (lambda: LoadPlan(duration=1e9), "duration: with the warm-up at most 3600 s"),
        (lambda: LoadPlan(arrivals=Clients(1), duration=601), "duration: with the warm-up at most 600 s"),
        (lambda: LoadPlan(arrivals=Clients(0)), "clients: must be within 1..4096"),
        (lambda: LoadPlan(arrivals=Clients(1, -1)), "think: must not be negative"),
        (lambda: LoadPlan(warmup=-1), "warmup: must not be negative"),
        (lambda: LoadPlan(timeout=math.inf), "timeout: must be positive"),
        (lambda: LoadPlan(seed=-1), "seed: must not be negative"),
        (lambda: LoadPlan(max_open=0), "max_open: must be at least 1"),
        (lambda: LoadPlan(arrivals=Clients(1)).at_rate(5), "clients: a closed loop has no rate"),
    ],
)
def test_a_load_without_bounds_is_refused(make: Callable[[], LoadPlan], said: str) -> None:
    """Time and number of requests are bounded, and the message names the option."""
    with pytest.raises(ValueError, match=said):
        make()


def test_a_plan_at_another_rate_is_the_same_but_for_it() -> None:
    """Bursts stay bursts; the seed changes on request."""
    plan = LoadPlan(arrivals=Bursts(10, 4), duration=7, seed=3)
    assert plan.at_rate(20) == LoadPlan(arrivals=Bursts(20, 4), duration=7, seed=3)
    assert plan.at_rate(20, seed=9) == LoadPlan(arrivals=Bursts(20, 4), duration=7, seed=9)


def test_kinds_have_timeouts_of_their_own() -> None:
    """A kind without one has the load's."""
    kinds = parse_mix("ddim:1:timeout=0.25=1,score=1")
    assert LoadPlan(timeout=3).timeouts(kinds) == [0.25, 3]


def test_the_document_says_how_requests_arrive() -> None:
    """The law of arrivals and its values stand beside the others."""
    assert LoadPlan(arrivals=Bursts(10, 4)).document()["arrivals"] == {"law": "bursts", "rate": 10, "size": 4}
    closed = LoadPlan(arrivals=Clients(2, 0.5)).document()
    assert (closed["arrivals"], closed["duration"]) == ({"law": "clients", "clients": 2, "think": 0.5}, 20)
