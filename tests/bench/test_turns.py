"""Two servers in turns: a real pair of them, and what is made of the turns."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench.cli import main
from bench.environment import describe_environment
from bench.turns.result import Ratio, Side, Turn, TurnsResult

SIDES = Side("this", "c0ffee", ()), Side("other", "beef", ("--threads", "1"))


def turn(load: str, number: int, side: str, answered: float, p50: float = 0.001) -> Turn:
    return Turn(load, number, side, 2.0 * answered, answered, p50, 2 * p50, {})


def result_of(*turns: Turn) -> TurnsResult:
    return TurnsResult(SIDES, "ddim:1", 2, 1.0, 10.0, turns, describe_environment())


def test_two_servers_in_turns(repository: Path, tmp_path: Path) -> None:
    """Open and closed loops, options of the other side, who begins changes, and a report of every turn."""
    command = ["turns", "--repository", str(repository), "--mix", "ddim:1=1,vdrme:4=1", "--rates", "20"]
    command += ["--clients", "1", "--rounds", "2", "--duration", "0.5", "--warmup", "0.1"]
    command += ["--other-options", "--batching request", "--output", str(tmp_path)]
    assert main(command) == 0
    document = json.loads((tmp_path / "turns.json").read_text())
    turns = [(turn["load"], turn["round"], turn["side"]) for turn in document["turns"]]
    open_loop, closed_loop = "20 requests/s", "1 client"
    assert turns == [
        (load, number, side)
        for number, order in enumerate((("this", "other"), ("other", "this")))
        for load in (open_loop, closed_loop)
        for side in order
    ]
    assert all(turn["answered"] > 0 and turn["p99"] >= turn["p50"] > 0 for turn in document["turns"])
    assert not any(turn["errors"] for turn in document["turns"])
    assert document["sides"][1]["options"] == ["--batching", "request"]
    report = (tmp_path / "turns.md").read_text()
    assert "`--batching request`" in report
    assert report.count("\n| 1 client |") == 3 + 4  # the measures, and the turns
    offered = [turn["offered"] for turn in document["turns"] if turn["load"] == open_loop]
    assert offered[0] == offered[1]  # both sides of a round get the same requests
    for side in ("this", "other"):
        assert "serving on" in (tmp_path / f"{side}.log").read_text()


def test_ratios_are_of_the_same_round() -> None:
    """A machine that is twice as fast in one round changes nothing, in whatever order the turns were."""
    result = result_of(
        turn("a", 0, "this", 100.0),
        turn("a", 0, "other", 50.0),
        turn("a", 1, "other", 100.0),
        turn("a", 1, "this", 200.0),
    )
    assert result.ratio("a", "answered") == Ratio(2.0, 2.0, 2.0)
    assert result.ratio("a", "p50") == Ratio(1.0, 1.0, 1.0)
    assert ("a", "answered", "150/s", "75/s", "2.00 (2.00 to 2.00)") in result.table()


def test_a_round_without_answers_has_no_ratio() -> None:
    """Nothing answered by the other side is no division by zero, and no answer has no latency."""
    result = result_of(
        turn("a", 0, "this", 100.0),
        turn("a", 0, "other", 0.0, math.nan),
        turn("a", 1, "this", 3.0),
        turn("a", 1, "other", 2.0),
    )
    assert result.ratio("a", "answered") == Ratio(1.5, 1.5, 1.5)
    assert result.ratio("a", "p50") == Ratio(1.0, 1.0, 1.0)
    assert math.isnan(Ratio.of([]).median)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--other", "/"], "other"),
        (["--rounds", "0"], "rounds"),
        (["--rates", "0"], "rate"),
        (["--clients", "0"], "clients"),
        (["--duration", "0"], "duration"),
        (["--mix", "nonsense:=3"], "mix|nonsense"),
    ],
)
def test_wrong_options_are_named_before_anything_starts(arguments, named, capsys, tmp_path: Path) -> None:
    command = ["turns", "--repository", str(tmp_path), "--output", str(tmp_path / "out"), *arguments]
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert any(name in printed for name in named.split("|")), printed
    assert not (tmp_path / "out").exists()
