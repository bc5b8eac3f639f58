"""Studies: goals, the smallest fleets that meet them, and the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bench.cli import main
from bench.simulate.costs import Costs, Group, HostCost, StepCost, save_costs
from bench.simulate.fleet import simulate
from bench.simulate.goal import GoalError, parse_goal, smallest
from bench.simulate.results import summarise
from tests.bench.simulate.fleets import at, call, costs, fleet

KINDS = ("ddim:1", "iddim:4:m=0.6")
STEPS = (Group("digits-ddpm", "denoiser", "ensemble"), Group("digits-vdrme", "energy", "score"))


@pytest.fixture
def costs_file(tmp_path: Path) -> str:
    """5 ms a step and 1 ms a row more, 0.1 ms of the host."""
    steps = tuple(StepCost(*group, rows=(1, 2), seconds=((0.005,), (0.006,))) for group in STEPS)
    save_costs(tmp_path / "costs.json", Costs(steps, HostCost(5e-5, 5e-5), HostCost(5e-5, 5e-5)))
    return str(tmp_path / "costs.json")


@pytest.mark.parametrize(("text", "kind", "share", "seconds"), [
    ("p99<50ms", "", 99.0, 0.05),
    ("p99.9 < 0.5s", "", 99.9, 0.5),
    ("iddim:4:m=0.6 p50<900us", "iddim:4:m=0.6", 50.0, 9e-4),
])  # fmt: skip
def test_goals_are_read(text, kind, share, seconds):
    """A percentile, a time, and perhaps a kind."""
    goal = parse_goal(text, KINDS)
    assert (goal.kind, goal.share) == (kind, share)
    assert goal.seconds == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "p99", "p99<50", "p99>50ms", "p0<1s", "p101<1s", "p99<0ms", "vdrme:4 p99<1s"])
def test_wrong_goals_are_refused(text):
    """Quoted, or with the kinds that there are."""
    with pytest.raises(GoalError, match="goal"):
        parse_goal(text, KINDS)


def test_a_refused_request_took_forever():
    """Of four requests one is refused at once: the median goal is met, the 99th percentile's is not."""
    server = fleet("round-robin", 1, costs(), slots=1, max_waiting_rows=2)
    calls = [call()]
    run = simulate(server, calls, at(0.0, 0.0, 0.0, 0.0), duration=10.0)
    assert parse_goal("p50<3s", ()).met(calls, run)
    assert parse_goal("p99<99s", ()).value(calls, run) == math.inf
    result = summarise(server, 1.0, calls, run, 1.0)
    assert (result.sent, result.ok, result.failed) == (4, 3, {"refused RESOURCE_EXHAUSTED": 1})
    assert result.latency["max"] == pytest.approx(3.0)


def test_what_arrives_outside_the_window_does_not_count():
    """The first request is in the warm-up, and the last one after the end; steps count where they ran."""
    server, calls = fleet("round-robin", 1, costs()), [call()]
    run = simulate(server, calls, at(0.0, 1.5, 6.0), warmup=1.0, duration=4.0)
    result = summarise(server, 1.0, calls, run, 1.0)
    assert result.sent == 1
    assert result.device.mean == pytest.approx(1.0 / 4.0)
    assert result.goodput == pytest.approx(0.25)


@pytest.mark.parametrize("wanted", [1, 2, 3, 7, 64, 99, 100])
@pytest.mark.parametrize("low", [1, 5])
def test_the_smallest_is_found_to_the_number(wanted, low):
    """Up to a hundred, from any lower bound, in few steps."""
    tried: list[int] = []
    found = smallest(lambda n: tried.append(n) or n >= wanted, low, 1000)  # type: ignore[func-returns-value]
    assert found == max(low, wanted)
    assert len(tried) <= 16


def test_large_fleets_are_found_to_one_percent_and_never_too_small():
    """Above a hundred."""
    for wanted in (333, 777):
        found = smallest(lambda n, least=wanted: n >= least, 1, 1000)  # type: ignore[misc]
        assert found is not None
        assert wanted <= found <= 1.01 * wanted + 1


def test_no_fleet_is_an_answer():
    """Where the largest allowed does not meet the goal."""
    assert smallest(lambda n: n > 50, 1, 50) is None
    assert smallest(lambda n: n >= 50, 1, 50) == 50


def test_a_study_is_written_down(tmp_path: Path, costs_file: str):
    """Every policy at every size and rate, with the kinds, in JSON, Markdown and a picture."""
    output = tmp_path / "study"
    command = ["simulate", "--costs", costs_file, "--mix", "ddim:1=1,ddim:4=1,score:model=digits-vdrme=1"]
    command += ["--rate", "100,200", "--replicas", "2,3", "--policies", "round-robin,two-choices"]
    assert main([*command, "--requests", "300", "--output", str(output)]) == 0
    document = json.loads((output / "study.json").read_text())
    assert [(r["rate"], r["replicas"], r["policy"]) for r in document["results"]] == [
        (rate, n, policy) for rate in (100.0, 200.0) for n in (2, 3) for policy in ("round-robin", "two-choices")
    ]
    for result in document["results"]:
        assert result["sent"] == sum(kind["sent"] for kind in result["kinds"])
        assert result["ok"] == result["sent"]
        assert 0 < result["latency"]["p50"] <= result["latency"]["p99"]
        assert 0 < result["device"]["mean"] < 1
    text = (output / "study.md").read_text()
    assert "| 200 | 3 | two-choices |" in text
    assert (output / "study.png").stat().st_size > 10_000


def test_a_study_answers_with_the_size_of_the_fleet(tmp_path: Path, costs_file: str):
    """The answer meets the goal, and one replica less does not."""
    output = tmp_path / "goal"
    command = ["simulate", "--costs", costs_file, "--mix", "ddim:4=1", "--rate", "500", "--policies", "least-loaded"]
    assert main([*command, "--goal", "p99<60ms", "--requests", "1500", "--output", str(output)]) == 0
    document = json.loads((output / "study.json").read_text())
    (answer,) = document["answers"]
    tried = {r["replicas"]: r["latency"]["p99"] for r in document["results"]}
    assert tried[answer["replicas"]] < 0.06
    assert tried.get(answer["replicas"] - 1, 1.0) >= 0.06
    assert (
        main([*command, "--goal", "p99<60ms", "--max-replicas", "1", "--requests", "300", "--output", str(output)]) == 1
    )


@pytest.mark.parametrize(("options", "words"), [
    (["--rate", "0"], "rate: must be positive"),
    (["--rate", "fast"], "rate: must be numbers"),
    (["--replicas", "0"], "replicas: must be within"),
    (["--replicas", "2.5"], "replicas: must be numbers"),
    (["--policies", "best"], "policies: no policy 'best'"),
    (["--policies", ","], "policies: must name at least one"),
    (["--requests", "3"], "requests: must be within"),
    (["--timeout", "-1"], "timeout: must be positive"),
    (["--routers", "0"], "routers: must be within"),
    (["--warmup", "-1"], "warmup: must be within"),
    (["--max-batch-rows", "0"], "max_batch_rows must be positive"),
    (["--arrivals", "often"], "arrivals: must be poisson"),
    (["--goal", "fast"], "goal: 'fast' is neither"),
    (["--max-replicas", "0", "--goal", "p99<1s"], "max_replicas: must be within"),
    (["--mix", "vdrme:4:model=digits-vdrme=1"], "no step of digits-vdrme/generator"),
    (["--models", "nowhere"], "nowhere holds neither"),
    (["--measure"], "repository: --measure starts a server"),
    (["--check"], "repository: --check starts a server"),
    (["--check", "--measure"], "give one of them"),
    (["--check", "--repository", "x", "--utilisation", "1.5"], "utilisation: must be within"),
    (["--measure", "--repository", "x", "--probe-rows", "4,2"], "probe_rows: must be whole numbers, increasing"),
    (["--measure", "--repository", "x"], "x holds neither bundles"),
])  # fmt: skip
def test_wrong_options_are_refused_before_anything_runs(costs_file, capsys, options, words):
    """With code 2, and the option's name."""
    assert main(["simulate", "--costs", costs_file, "--mix", "ddim:1=1", *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_the_seed_decides_on_the_whole_study(tmp_path: Path, costs_file: str):
    """Two studies with one seed are the same but for the time that they took."""
    documents = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        command = ["simulate", "--costs", costs_file, "--mix", "ddim:2=1", "--rate", "300", "--replicas", "3"]
        assert main([*command, "--requests", "200", "--seed", seed, "--output", str(tmp_path / name)]) == 0
        document = json.loads((tmp_path / name / "study.json").read_text())
        documents.append([{**r, "request_microseconds": 0} for r in document["results"]])
    assert documents[0] == documents[1]
    assert documents[0] != documents[2]
    assert np.isfinite(documents[0][0]["latency"]["p99"])
