"""What the numbers of a measurement are, and what they say of the goals."""

from __future__ import annotations

import math

import pytest

from bench.end_to_end.cases import Case
from bench.end_to_end.plan import Lot
from bench.end_to_end.race import Race
from bench.end_to_end.report import markdown
from bench.end_to_end.result import UNET, Cell, EndToEnd, Goal, Quartiles, Timing
from bench.end_to_end.served import Taken
from bench.environment import describe_environment
from tests.bench.end_to_end.test_plan import Model, program


def timing(engine: str, contender: str, ratio: float | None = None, update: float | None = None) -> Timing:
    over = None if ratio is None else Quartiles(ratio, ratio, ratio)
    share = None if update is None else 1 - update
    return Timing(engine, contender, 5, 0.01, 0.02, 0.03, over, share, update)


def measurement(cells: list[Cell], device: str = "cpu", **changes) -> EndToEnd:
    fields = {
        **{"environment": describe_environment(), "device": device, "precision": "float32", "threads": 1},
        **{"budget_seconds": 1.0, "seconds": 1.0, "copy_bandwidth": None if device == "cpu" else 3e12},
        **{"parameters": {cell.case.model: 1_000_000 for cell in cells}, "compile_seconds": {}},
        **{"cells": tuple(cells), "left_out": {}, "load_after": 1.0, "stolen_seconds": 0.0},
    }
    return EndToEnd(**(fields | changes))


def unet(steps: int, rows: int, *timings: Timing) -> Cell:
    return Cell(Case(UNET, "sample", steps, rows), steps, 0, timings)


def test_a_timing_compares_neighbouring_calls():
    """The ratio is of pairs, so that a slow spell that hits both leaves it alone."""
    served = {0: Taken(1.1), 1: Taken(11.0), 3: Taken(1.2)}
    bare = {0: Taken(1.0), 1: Taken(10.0), 2: Taken(70.0), 3: Taken(1.0)}
    found = Timing.of("onnxruntime", "served", served, bare=bare)
    assert found.over_bare is not None
    assert found.over_bare.median == pytest.approx(1.1)
    assert (found.calls, found.best, found.p50, found.p99) == (3, 1.1, 1.2, 11.0)
    assert found.update_share is None


def test_the_updates_share_is_what_the_networks_leave_of_the_steps():
    """It is of the steps' own time, and the median of the calls."""
    calls = [Taken(1.0, steps=0.8, networks=0.6), Taken(1.0, steps=1.0, networks=0.9), Taken(1.0, 1.0, 0.5)]
    found = Timing.of("onnxruntime", "served", dict(enumerate(calls)), networks=True)
    assert found.network_share == pytest.approx(0.75)
    assert found.update_share == pytest.approx(0.25)


def test_rates_count_samples_images_and_steps():
    """A chain's rate is in steps of one row each."""
    took = timing("torch", "served")
    assert unet(4, 8, took).rate(took) == pytest.approx(8 / 0.02)
    assert Cell(Case("m", "langevin", 12, 8), 12, 12, (took,)).rate(took) == pytest.approx(96 / 0.02)


def test_goals_on_the_cpu():
    """The cases' medians, of the ratio and of the update's share; other engines and models do not count."""
    cells = [
        unet(1, 1, timing("onnxruntime", "served", 1.01, 0.015), timing("torch", "served", 2.0)),
        unet(4, 1, timing("onnxruntime", "served", 1.02, 0.06)),
        unet(8, 1, timing("onnxruntime", "served", 1.06, 0.03)),
        Cell(Case("digits-ddpm", "sample", 1, 1), 1, 0, (timing("onnxruntime", "served", 9.0, 0.9),)),
    ]
    ratio, share = measurement(cells).goals()
    assert (ratio.value, ratio.met) == (1.02, True)
    assert (share.value, share.met) == (0.03, False)


def test_the_goal_on_a_gpu_is_of_four_steps_of_one_row():
    """And of no other case."""
    cells = [unet(4, 8, timing("torch", "served", 1.0)), unet(4, 1, timing("torch", "served", 1.2))]
    (goal,) = measurement(cells, "NVIDIA Something").goals()
    assert (goal.value, goal.verdict) == (1.2, "missed")


def test_what_was_not_measured_meets_nothing():
    """And misses nothing."""
    assert {goal.met for goal in measurement([]).goals()} == {None}
    assert Goal("g", 0.95, 0.95, at_most=False).met
    assert Goal("g", 0.94, 0.95, at_most=False).verdict == "missed"


def test_the_report_says_what_was_left_out_and_why():
    """Models, engines and cases; and every case that was measured has a line."""
    cell = Cell(
        Case(UNET, "sample", 2, 8), 2, 0, (timing("onnxruntime", "served", 1.25, 0.04),), None, {"torch": "slow"}
    )
    text = markdown(measurement([cell], left_out={"hat-cifar10": "no time was left"}))
    assert f"- {UNET}, DDIM 2, 8 rows, torch: slow" in text
    assert "- hat-cifar10: no time was left" in text
    assert "| DDIM 2, 8 rows | onnxruntime | 5 | 20 | 30 |  | 1.250 (1.250..1.250) |" in text
    assert "4.00 % | 400 samples/s |" in text


def test_contenders_take_turns_in_an_order_that_changes():
    """Nobody is always first, and the n-th calls of all are neighbours."""
    asked = []
    race = Race(Lot(Case("m", "sample", 1, 1), program("a"), Model(0, 0), 0.4))
    for index, name in enumerate(("served", "bare")):
        race.runs[name] = lambda name=name, index=index: asked.append(name) or Taken(1.0 + index)
    race.visit(0.65, math.inf, lambda: 0.0)  # 0.2 s a call: three times each
    race.visit(0.1, math.inf, lambda: 0.0)
    assert asked == ["served", "bare", "bare", "served", "served", "bare", "bare", "served"]
    found = {timing.contender: timing for timing in race.timings()}
    assert found["bare"].over_bare is None
    assert found["served"].over_bare is not None
    assert found["served"].over_bare.median == 0.5


def test_who_comes_later_is_compared_with_the_calls_beside_its_own():
    """torch.compile joins when the others have been measured: their calls before are none of its pairs."""
    race = Race(Lot(Case("m", "sample", 1, 1), program("a"), Model(0, 0), 0.4))
    seconds = iter([8.0, 1.0])
    race.runs["bare"] = lambda: Taken(next(seconds))
    race.visit(0.1, math.inf, lambda: 0.0)
    race.runs["compiled"] = lambda: Taken(2.0)
    race.visit(0.1, math.inf, lambda: 0.0)
    found = {timing.contender: timing for timing in race.timings()}
    assert found["compiled"].over_bare is not None
    assert found["compiled"].over_bare.median == 2.0
    assert found["bare"].calls == 2


def test_a_visit_ends_at_the_deadline():
    """After the calls that were begun, so that pairs stay pairs."""
    now = iter([0.0, 2.0, 3.0])
    race = Race(Lot(Case("m", "sample", 1, 1), program("a"), Model(0, 0), 0.02))
    race.runs = {"served": lambda: Taken(1.0), "bare": lambda: Taken(1.0)}
    race.visit(0.5, 1.0, lambda: next(now))
    assert [len(calls) for calls in race.taken.values()] == [2, 2]
