"""The search for the highest rate that meets a goal, on servers whose answer is known."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from bench.load import LoadError, LoadPlan, LoadResult, summarise
from bench.load.goals import Goal
from bench.load.search import Found, Probe, search
from bench.mix import parse_mix
from bench.schedule import Poisson
from bench.sender import Outcome

KINDS = ("ddim:1", "score")


def result_of(latency: float, failed: int = 0, score_latency: float | None = None) -> LoadResult:
    """A load of 100 requests of each kind, the given number of which failed."""
    plan = LoadPlan("ddim:1=1,score=1", Poisson(10), duration=10, warmup=0)
    later = latency if score_latency is None else score_latency
    outcomes = [
        Outcome(kind, 0.04 * index, 0.0, seconds, "UNAVAILABLE" if index < failed else "OK")
        for index in range(100)
        for kind, seconds in ((0, latency), (1, later))
    ]
    return summarise(plan, parse_mix(plan.mix), outcomes, {})


def find(latency_at: Callable[[float, int], float], first: float, **options: float) -> tuple[Found, list[float]]:
    """Search for p99 < 100 ms; latency_at: seconds by rate and attempt. Returns the rates that were tried too."""
    tried: list[float] = []

    async def measure(rate: float, attempt: int) -> LoadResult:
        tried.append(rate)
        return result_of(latency_at(rate, attempt))

    goals = [Goal.parse("p99<100ms", KINDS)]
    bounds = {"lowest": 1.0, "highest": 10_000.0, **options}
    return asyncio.run(search(measure, goals, first=first, **bounds)), tried


def queue(rate: float, attempt: int = 0) -> float:
    """Latency of a server that can do 400 a second; 100 ms are reached at 300."""
    return 10 / (400 - rate) if rate < 400 else 5.0


@pytest.mark.parametrize("first", [1.0, 10.0, 299.0, 301.0, 5000.0])
@pytest.mark.parametrize("precision", [0.2, 0.05, 0.01])
def test_the_rate_is_found_from_below_and_from_above(first: float, precision: float) -> None:
    """Whatever the first rate, what is found meets the goal and is within the precision of the true rate."""
    found, tried = find(queue, first, precision=precision)
    assert found.rate is not None
    assert 300 / (1 + precision) <= found.rate < 300
    assert found.bounded
    assert len(tried) < 40
    assert [probe.rate for probe in found.probes] == tried
    assert all(probe.met == (queue(probe.rate) < 0.1) for probe in found.probes)
    assert "is the highest rate that meets p99<100ms" in found.summary()


def test_one_bad_moment_of_the_machine_is_no_verdict() -> None:
    """A probe that misses is made again with other arrivals; only two misses count."""
    noisy = random.Random(0)

    def latency(rate: float, attempt: int) -> float:
        return 9.0 if attempt == 0 and noisy.random() < 0.5 else queue(rate)

    found, tried = find(latency, 10)
    assert found.rate is not None
    assert 300 / 1.05 <= found.rate < 300
    repeated = [rate for rate, next_rate in pairwise(tried) if rate == next_rate]
    assert repeated
    assert all(tried.count(rate) <= 2 for rate in tried)
    assert all(probe.missed for probe in found.probes if probe.rate >= 300)


def test_a_server_that_never_meets_the_goal_and_one_that_always_does() -> None:
    """Both ends are ends: no rate, or the highest that may be offered, and the summary says which."""
    slow, tried = find(lambda rate, attempt: 1.0, 50, lowest=2)
    assert (slow.rate, min(tried)) == (None, 2)
    assert slow.summary() == "no rate down to 2 requests/s meets p99<100ms"
    fast, tried = find(lambda rate, attempt: 0.001, 50, highest=3000)
    assert (fast.rate, fast.bounded, max(tried)) == (3000, False, 3000)
    assert fast.summary() == "3000 requests/s, the most that a run may offer, meet p99<100ms"


def test_a_search_without_bounds_is_refused() -> None:
    """A load too short for any figure, and a precision that is none."""
    with pytest.raises(LoadError, match="duration: too short for 10 requests"):
        find(queue, 10, lowest=5, highest=4)
    for precision in (0, 1, float("nan")):
        with pytest.raises(LoadError, match=r"precision: must be within 0\.\.1"):
            find(queue, 10, precision=precision)


def test_every_probe_is_told_of_as_it_ends() -> None:
    """Who watches sees each rate with its verdict."""
    told: list[Probe] = []

    async def measure(rate: float, attempt: int) -> LoadResult:
        return result_of(queue(rate))

    goals = [Goal.parse("p99<100ms", KINDS)]
    found = asyncio.run(search(measure, goals, first=200, lowest=1, highest=999, tell=told.append))
    assert tuple(told) == found.probes


def test_goals_bound_a_figure_of_all_or_of_one_kind() -> None:
    """What is missed is said with its figure."""
    result = result_of(0.02, failed=3, score_latency=0.08)
    missed = {
        text: Goal.parse(text, KINDS).missed(result)
        for text in ("p99<50ms", "ddim:1:p99<50ms", "score:max < 0.05s", "errors<1%", "errors<5%", "p50<30000us")
    }
    assert missed == {
        "p99<50ms": "p99 80 ms",
        "ddim:1:p99<50ms": None,
        "score:max < 0.05s": "score max 80 ms",
        "errors<1%": "errors 3 %",
        "errors<5%": None,
        "p50<30000us": None,
    }
    nothing = result_of(0.02, failed=100)
    assert Goal.parse("p99<50ms", KINDS).missed(nothing) == "p99 unknown, nothing was answered"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "goal: must be as p99<50ms, KIND:p99<50ms or errors<1%, got ''"),
        ("p99<50", "goal: must be as"),
        ("p99>50ms", "goal: must be as"),
        ("p99<0ms", "goal: must be as"),
        ("p99<1.2.3ms", "goal: must be as"),
        ("p98<50ms", "must bound one of p50, p90, p95, p99, p99.9, max in us, ms or s, or errors in %"),
        ("p99<50%", "must bound one of"),
        ("errors<50ms", "must bound one of"),
        ("ddim:2:p99<50ms", "is for 'ddim:2', and the mix has ddim:1, score"),
    ],
)
def test_a_wrong_goal_is_refused(text: str, said: str) -> None:
    """The message says what would have been right."""
    with pytest.raises(LoadError) as caught:
        Goal.parse(text, KINDS)
    assert said in str(caught.value)
