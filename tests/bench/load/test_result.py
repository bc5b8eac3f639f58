"""What the outcomes of a load come to."""

from __future__ import annotations

import math

import pytest

from bench.load import LoadPlan, summarise
from bench.mix import parse_mix
from bench.schedule import Poisson
from bench.sender import Outcome
from bench.targets import Answer


def test_figures_of_a_known_run() -> None:
    """Throughput counts answers within the measured window, whenever they were asked for; percentiles are exact."""
    plan = LoadPlan("ddim:1=1,score=1", Poisson(1), duration=10, warmup=2)
    answer = Answer(0.01, 0.02, 0.01, 0.005, 0.04, 4, 1)
    outcomes = [
        Outcome(
            0, 1.5, 0.0, 1.0, "OK", Answer(0.1, 0.2, 0.1, 0.0, 0.3, 8, 1)
        ),  # asked in the warm-up, answered in the window
        *[Outcome(0, 2.0 + i, 0.001, 0.1 * (i + 1), "OK", answer) for i in range(9)],
        Outcome(0, 11.5, 0.002, 1.0, "OK", Answer(0.03, 0.02, 0.01, 0.0, 0.06, 4, 1)),  # answered after the window
        Outcome(1, 5.0, 0.001, 2.0, "UNAVAILABLE"),
    ]
    result = summarise(plan, parse_mix(plan.mix), outcomes, {})
    ddim, score = result.kinds
    assert (result.offered, result.achieved) == (1.1, 1.0)
    assert (ddim.sent, ddim.ok, score.sent, score.ok) == (10, 10, 1, 0)
    assert ddim.latency == pytest.approx({"p50": 0.5, "p90": 0.9, "p95": 1.0, "p99": 1.0, "p99.9": 1.0, "max": 1.0})
    assert ddim.service == pytest.approx(
        {"p50": 0.499, "p90": 0.899, "p95": 0.998, "p99": 0.998, "p99.9": 0.998, "max": 0.998}
    )
    assert (ddim.batch_rows, ddim.rows, result.errors) == (4, 10, {"UNAVAILABLE": 1})
    assert (result.total.sent, result.total.ok) == (11, 10)
    assert (ddim.error_share, score.error_share) == (0, 1)
    assert result.lag["max"] == 0.002


def test_stages_add_up_to_the_mean_latency() -> None:
    """As many stages as the server tells apart; what it does not say is on the wire."""
    plan = LoadPlan("ddim:1=1", Poisson(1), duration=10, warmup=0)
    answers = (
        (
            Answer(0.1, 0.2, 0.15, 0.0, 0.4),
            {"late": 0.1, "queue": 0.1, "network": 0.15, "update": 0.05, "waits, host": 0.1, "wire": 0.5},
        ),
        (
            Answer(0.1, 0.2, 0.15, 0.02, 0.4),
            {
                **{"late": 0.1, "queue": 0.1, "network": 0.15, "update": 0.05},
                **{"encode": 0.02, "waits, host": 0.08, "wire": 0.5},
            },
        ),
        (Answer(0.1, 0.2), {"late": 0.1, "queue": 0.1, "steps": 0.2, "waits, host, wire": 0.6}),
        (Answer(), {"late": 0.1, "server and wire": 0.9}),
    )
    for answer, wanted in answers:
        outcomes = [Outcome(0, 1.0, 0.05, 0.9, "OK", answer), Outcome(0, 2.0, 0.15, 1.1, "OK", answer)]
        stages = summarise(plan, parse_mix(plan.mix), outcomes, {}).total.stages
        assert stages == pytest.approx(wanted)
        assert sum(stages.values()) == pytest.approx(1.0)


def test_nothing_measured_is_nothing_claimed() -> None:
    """Without an answer there are no percentiles, no stages and no rows."""
    plan = LoadPlan("ddim:1=1", Poisson(1), duration=1, warmup=0)
    result = summarise(plan, parse_mix(plan.mix), [], {})
    assert (result.total.sent, result.total.stages, result.total.error_share) == (0, {}, 0)
    assert math.isnan(result.total.latency["p50"])
    assert math.isnan(result.total.batch_rows)
