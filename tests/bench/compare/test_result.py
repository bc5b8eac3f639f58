"""The arithmetic of a comparison and its report, from rounds that are made up."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench.compare.command import goals, write_numbers
from bench.compare.pictures import draw
from bench.compare.report import markdown
from bench.compare.result import Comparison, Goal, Measurement, Setup
from bench.environment import Environment

ENVIRONMENT = Environment(
    **{"time": "2026-01-01T00:00:00+00:00", "commit": "abc", "cpu": "a processor", "cores": 2, "usable_cores": 2.0},
    **{"memory_bytes": 1, "gpus": (), "system": "Linux", "python": "3.11", "packages": {}, "load_average": (0, 0, 0)},
)
TITLES = {
    **{"fewstep": "fewstep", "fewstep-native": "fewstep, fewstep.v1", "fewstep-request": "whole requests"},
    **{"triton": "Triton", "ray": "Ray Serve", "grpc": "grpcio", "bare": "bare loop", "diffusers": "diffusers"},
}


def comparison(*measured: tuple[str, str, list[dict[str, float]]]) -> Comparison:
    """Scenario, server and its numbers round by round."""
    scenarios = {scenario: f"about {scenario}" for scenario, _, _ in measured}
    setup = Setup(
        **{"titles": TITLES, "versions": {"triton": "0.7"}, "left_out": {"litserve": "not installed\nat all"}},
        **{"scenarios": scenarios, "settings": {"small": {"triton clients": 16}}, "plan": {}, "threads": 1},
    )
    rounds = [
        Measurement(scenario, server, turn, numbers)
        for scenario, server, all_numbers in measured
        for turn, numbers in enumerate(all_numbers)
    ]
    return Comparison(setup, ENVIRONMENT, tuple(rounds))


def ratio(found: Comparison, name: str) -> tuple[float, float, float, bool | None]:
    (one,) = [ratio for ratio in found.ratios() if ratio.name == name]
    return one.value, one.low, one.high, one.met


def idle(*seconds: float) -> list[dict[str, float]]:
    return [{f"{way}_{share}": s for way in ("paced", "busy") for share in ("p50", "p90")} for s in seconds]


def test_added_latency_is_taken_round_by_round() -> None:
    """What a server adds is its latency less the loop's of the same round; a peer's ratio is of what both add."""
    found = comparison(
        ("idle", "bare", idle(0.001, 0.002, 0.001)),
        ("idle", "fewstep", idle(0.0015, 0.0025, 0.0017)),
        ("idle", "triton", idle(0.003, 0.004, 0.005)),
    )
    assert ratio(found, "idle paced: fewstep adds, ms at p50") == (
        pytest.approx(0.5),
        pytest.approx(0.5),
        pytest.approx(0.7),
        True,
    )
    assert ratio(found, "idle busy: fewstep / triton") == (
        pytest.approx(0.25),
        pytest.approx(0.175),
        pytest.approx(0.25),
        True,
    )


def test_throughput_is_held_to_the_loop_and_to_every_peer() -> None:
    """At least 0.8 of the loop and twice each peer with small models, 0.97 of the loop with the large one."""

    def rate(*values: float) -> list[dict[str, float]]:
        return [{"rows_per_second": value} for value in values]

    found = comparison(
        ("small", "fewstep", rate(80, 90, 85)),
        ("small", "bare", rate(100, 100, 100)),
        ("small", "triton", rate(50, 50, 50)),
        ("small", "fewstep-request", rate(60, 60, 60)),
        ("large", "fewstep", rate(96)),
        ("large", "bare", rate(100)),
        ("large", "triton", rate(0)),
    )
    assert ratio(found, "small: fewstep / bare")[3] is True
    assert ratio(found, "small: fewstep / triton") == (pytest.approx(1.7), 1.6, 1.8, False)
    assert ratio(found, "small: fewstep / fewstep-request")[3] is None
    assert ratio(found, "large: fewstep / bare") == (0.96, 0.96, 0.96, False)
    assert math.isnan(ratio(found, "large: fewstep / triton")[0])


def test_the_best_batcher_is_one_that_keeps_up_with_the_load() -> None:
    """A server that answers a part of what it is offered has low latencies for free, and one that does not batch is
    no batcher."""

    def tail(p99: float, achieved: float = 100.0) -> list[dict[str, float]]:
        return [{"offered": 100.0, "achieved": achieved, "failed": 0.0, "ddim:1 p50": 0.001, "ddim:1 p99": p99}]

    found = comparison(
        ("interactive", "fewstep", tail(0.02)),
        ("interactive", "triton", tail(0.1)),
        ("interactive", "fewstep-request", tail(0.2)),
        ("interactive", "ray", tail(0.03, achieved=50.0)),
        ("interactive", "grpc", tail(0.05)),
    )
    assert ratio(found, "interactive: p99 fewstep / best request-level batcher") == (
        pytest.approx(0.2),
        pytest.approx(0.2),
        pytest.approx(0.2),
        True,
    )
    assert ratio(found, "interactive: p99 fewstep / ray")[0] == pytest.approx(2 / 3)


def test_goodput_under_overload_is_a_share_of_its_peak() -> None:
    """The goal is fewstep's; the peers' shares stand beside it."""
    found = comparison(("overload", "fewstep", [{"share": 0.95}]), ("overload", "ray", [{"share": 0.1}]))
    assert ratio(found, "overload: fewstep, goodput of its peak") == (0.95, 0.95, 0.95, True)
    assert ratio(found, "overload: ray, goodput of its peak")[3] is None


def test_goals_say_which_way_they_go() -> None:
    """The bound itself meets them; what is no number does not."""
    assert Goal(0.35, at_most=True).met(0.35)
    assert not Goal(0.35, at_most=True).met(0.36)
    assert Goal(2.0, at_most=False).met(2.0)
    assert not Goal(2.0, at_most=False).met(math.nan)


def test_the_report_is_complete(tmp_path: Path) -> None:
    """Goals, a table for each scenario, who was left out and why; JSON without infinities; a picture."""
    found = comparison(
        ("small", "fewstep", [{"rows_per_second": 80.0}, {"rows_per_second": 90.0}]),
        ("small", "bare", [{"rows_per_second": 100.0}, {"rows_per_second": 100.0}]),
        ("interactive", "fewstep", [{"offered": 9.0, "achieved": 9.0, "ddim:1 p99": 0.0123}]),
        ("interactive", "triton", [{"offered": 9.0, "achieved": 1.0, "ddim:1 p99": math.inf}]),
    )
    text = markdown(found)
    assert "| small: fewstep / bare | 0.85 | 0.8 to 0.9 | >= 0.8 | yes |" in text
    assert "| fewstep | 9 | 9 | 12.3 |" in text
    assert "| Triton | 9 | 1 | unanswered |" in text
    assert "| litserve | left out | not installed at all |" in text
    assert "triton clients 16" in text
    write_numbers(found, tmp_path)
    draw(tmp_path / "compare.png", found)
    document = json.loads((tmp_path / "compare.json").read_text())
    assert document["ratios"]["small: fewstep / bare"] == pytest.approx(0.85)
    assert document["better"]["small: fewstep / bare"] == "higher"
    assert document["goals"]["small: fewstep / bare"] == {"goal": ">= 0.8", "met": True}
    assert document["medians"]["interactive"]["triton"]["ddim:1 p99"]["median"] is None
    assert len(document["rounds"]) == 6
    assert (tmp_path / "compare.png").stat().st_size > 10_000
    assert goals(found).row_count == 1
