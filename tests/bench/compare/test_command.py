"""The command's options, its turns, and a whole short comparison with the peers that need no environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli import main
from bench.compare import command
from bench.compare.command import in_turn
from bench.compare.loads import Load
from bench.compare.plan import Plan
from bench.mix import parse_mix
from bench.sender import Outcome

TINY = Plan(
    **{"rounds": 2, "idle_rounds": 2, "overload_rounds": 1, "idle_requests": 4, "settle": 0.1, "trial": 0.2},
    **{"saturation": 1.0, "large": 0.2, "bare": 0.05, "mixed": 0.4, "overload": 0.3},
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenarios", "idle,absent"], "scenarios: must be of idle, small"),
        (["--peers", "absent"], "peers: must be of fewstep, fewstep-request, triton"),
        (["--peers", ""], "got none"),
        (["--peers", "triton@soon"], "a delay is a number of milliseconds, got triton@soon"),
        (["--peers", "triton@-1"], "a delay is a number of milliseconds, got triton@-1"),
        (["--peers", "grpc@2"], "peers: grpc has no delay"),
        (["--peers", "absent@2"], "peers: must be of fewstep, fewstep-request, triton"),
    ],
)
def test_unknown_names_are_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The option and what there is are named, before anything is started."""
    assert main(["compare", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_repository_without_the_models_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before any server is started over it."""
    assert main(["compare", "--repository", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "no model digits-ddpm, digits-vdrme, ddpm-cifar10" in " ".join(capsys.readouterr().err.split())


def test_each_round_begins_with_another_server() -> None:
    """None is always the one behind the loops."""
    assert [in_turn(["a", "b", "c"], turn) for turn in range(4)] == [  # type: ignore[arg-type, comparison-overlap]
        *(["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]),
    ]


def test_a_load_counts_rows_by_when_they_were_answered_and_latencies_by_when_they_were_due() -> None:
    """An answer after the window is no throughput of it; an unanswered call is later than all others."""
    kinds = parse_mix("ddim:1:count=4=1,ddim:8=1")
    outcomes = (
        Outcome(0, 1.0, 0.0, 0.5, "OK"),
        Outcome(0, 1.2, 0.0, 0.1, "OK"),
        Outcome(1, 1.5, 0.0, 0.2, "OK"),
        Outcome(1, 1.6, 0.0, 0.3, "DEADLINE_EXCEEDED"),
    )
    load = Load(kinds, 2.0, 2.0, outcomes, outcomes[:3])
    assert load.rows_per_second() == 4.5
    assert load.rows_per_second(within=0.2) == 2.5
    assert load.achieved == 1.5
    assert load.failed == 0.25
    assert load.steps_per_second() == 8.0
    assert load.steps_per_second(within=0.2) == 6.0
    assert load.least_answered() == 0.5
    assert load.least_answered(within=0.1) == 0.0
    assert load.latency(0, 50) == 0.1
    assert load.latency(1, 99) == float("inf")


def test_a_whole_comparison(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both servers and the loops in every round of every scenario; who cannot be started is named and left out."""
    monkeypatch.setattr(command, "QUICK", TINY)
    names = ["idle", "small", "interactive", "scoring", "overload", "langevin"]
    arguments = ["--scenarios", ",".join(names), "--peers", "grpc,bentoml", "--repository", str(repository)]
    monkeypatch.setattr("bench.peers.environments.ENVIRONMENTS", tmp_path / "none")
    assert main(["compare", "--quick", *arguments, "--output", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "BentoML is left out: bentoml is not installed; run: python -m bench peers install bentoml" in said
    assert "wrote compare.json, compare.md and compare.png" in said
    document = json.loads((tmp_path / "compare.json").read_text())
    measured = {(entry["scenario"], entry["server"], entry["round"]) for entry in document["rounds"]}
    assert {(name, server, 0) for name in names for server in ("fewstep", "grpc")} <= measured
    assert {("idle", name, 1) for name in ("bare", "diffusers", "fewstep-native")} <= measured
    assert document["ratios"]["small: fewstep / bare"] > 0
    assert "interactive: p99 fewstep / grpc" in document["ratios"]
    assert document["setup"]["versions"]["grpc"]
    assert (tmp_path / "compare.md").is_file()


def test_a_comparison_that_fails_late_keeps_what_it_measured(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of a scenario are written when it is done: half an hour is too much to lose to the last one."""
    monkeypatch.setattr(command, "FULL", TINY)

    def fail(*_: object) -> None:
        raise RuntimeError("the machine is gone")

    monkeypatch.setattr("bench.compare.scenarios.Saturation.prepare", fail)
    options = ["--scenarios", "idle,small", "--peers", "fewstep", "--repository", str(repository)]
    with pytest.raises(RuntimeError, match="gone"):
        main(["compare", *options, "--output", str(tmp_path)])
    document = json.loads((tmp_path / "compare.json").read_text())
    assert set(document["medians"]) == {"idle"}
    assert "idle paced: fewstep adds, ms at p50" in document["ratios"]
    assert "idle" in (tmp_path / "compare.md").read_text()
