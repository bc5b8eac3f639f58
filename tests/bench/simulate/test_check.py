"""A real load beside its simulation: what is compared with what."""

from __future__ import annotations

import numpy as np
import pytest

from bench.schedule import Poisson
from bench.simulate.check import CheckPlan, Measured, compare, rate_for, simulate_again
from bench.simulate.fleet import simulate
from tests.bench.simulate.fleets import call, costs, fleet

PLAN = CheckPlan(mix="", duration=50.0, warmup=5.0, timeout=30.0)
CALLS = [call(1), call(3, weight=0.5)]
SERVER = fleet("round-robin", 1, costs((0.1, 0.2), per_row=0.02))


def load(seed: int, factor: float = 1.0) -> Measured:
    """What a server would have measured that is the simulation itself, but for its latencies' factor."""
    schedule = Poisson(2.0).schedule(PLAN.warmup + PLAN.duration, [1.0, 0.5], seed)
    run = simulate(SERVER, CALLS, schedule, duration=55.0, seed=seed)
    tally = run.tally
    return Measured(
        schedule, factor * run.latency, tally.busy[0], tally.batches.total(), tally.rows.total(), 5.5 * seed
    )


def test_a_server_that_is_the_simulation_agrees_with_it():
    """In every percentile, of all kinds and of each; and in what the device did."""
    loads = [load(seed) for seed in (1, 2)]
    found = compare("all", PLAN, CALLS, [(m, simulate_again(PLAN, m.schedule, SERVER, CALLS)) for m in loads])
    assert list(found.latency) == ["all", *(call.name for call in CALLS)]
    for pairs in found.latency.values():
        assert pairs["p50"].ratio == pytest.approx(1.0, abs=0.1)
        assert pairs["p99"].ratio == pytest.approx(1.0, abs=0.25)
    assert found.busy.ratio == pytest.approx(1.0, abs=0.05)
    assert found.batch_rows.ratio == pytest.approx(1.0, abs=0.05)
    assert found.failed == 0
    assert found.stolen == pytest.approx((5.5 + 11.0) / 110.0)
    assert found.sent == sum(int((m.schedule.at >= PLAN.warmup).sum()) for m in loads)


def test_a_slower_server_shows_as_one_and_its_failures_are_counted():
    """Latencies twice as long give a ratio of a half; a request that failed has none."""
    slow = load(1, factor=2.0)
    slow.latency[-1] = np.nan
    found = compare("slow", PLAN, CALLS, [(slow, simulate_again(PLAN, slow.schedule, SERVER, CALLS))])
    assert found.latency["all"]["p50"].ratio == pytest.approx(0.5, abs=0.05)
    assert found.failed == 1


@pytest.mark.parametrize("utilisation", [0.3, 0.7])
def test_the_rate_of_a_utilisation(utilisation):
    """At the rate that is found a step runs for that share of the time."""
    rate = rate_for(utilisation, SERVER, CALLS)
    schedule = Poisson(rate).schedule(2000 / rate, [1.0, 0.5], 9)
    run = simulate(SERVER, CALLS, schedule, duration=2000 / rate)
    assert run.tally.busy[0] / (2000 / rate) == pytest.approx(utilisation, abs=0.05)


@pytest.mark.parametrize(("options", "words"), [
    ({"utilisation": 1.0}, "utilisation"),
    ({"rate": 0.0}, "check_rate"),
    ({"duration": 0.0}, "check_seconds"),
    ({"seeds": ()}, "check_seeds"),
])  # fmt: skip
def test_wrong_plans_are_refused(options, words):
    """By the option's name."""
    with pytest.raises(ValueError, match=words):
        CheckPlan(mix="", **options)
