"""Pictures of loads are drawn from whatever was measured, including little and nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.load import Clients, LoadPlan, summarise
from bench.load.goals import Goal
from bench.load.occupancy import Batches, Interval
from bench.load.pictures import draw_load, draw_rates
from bench.load.search import Found, probe_of
from bench.mix import parse_mix
from bench.sender import Outcome
from bench.targets import Answer

MIX = "ddim:1=1,score=1"
ANSWERED = [
    Outcome(index % 2, 3.0 + index, 0.001, 0.1 * (1 + index), "OK", Answer(0.01, 0.02, 0.01, 0.002, 0.05))
    for index in range(9)
]
TIMELINE = [
    Interval(0.0, 1.0, {"toy/unet": Batches(3, 2.5)}, 0.5, 3, 0),
    Interval(1.0, 1.0, {}, 0.0, 0, 0),
    Interval(2.0, 1.0, {"toy/unet": Batches(1, 1), "toy/energy": Batches(5, 8)}, 0.9, 30, 12),
]


def ink(path: Path) -> int:
    """Pixels that are neither white nor light."""
    with Image.open(path) as picture:
        return int((np.asarray(picture.convert("L")) < 100).sum())


@pytest.mark.parametrize(("plan", "timeline"), [(LoadPlan(MIX), TIMELINE), (LoadPlan(MIX, Clients(2)), [])])
@pytest.mark.parametrize(
    "outcomes", [[], [Outcome(0, 4.0, 0, 0.1, "UNAVAILABLE"), Outcome(0, 2.0, 0, 0.1, "OK")], ANSWERED]
)
def test_any_load_is_drawn(tmp_path: Path, plan: LoadPlan, timeline: list[Interval], outcomes: list[Outcome]) -> None:
    """Nothing answered, a kind that never came, a server that was not watched: each leaves a picture."""
    result = summarise(plan, parse_mix(MIX), outcomes, {}, {}, timeline)
    draw_load(tmp_path / "load.png", result, outcomes, "foot")
    assert ink(tmp_path / "load.png") > 1000


def test_every_answer_is_a_point_in_time(tmp_path: Path) -> None:
    """The upper right panel has colour where answers are."""
    coloured = {}
    for count in (0, 1, 9):
        outcomes = ANSWERED[:count]
        draw_load(tmp_path / "load.png", summarise(LoadPlan(MIX), parse_mix(MIX), outcomes, {}), outcomes, "")
        with Image.open(tmp_path / "load.png") as picture:
            width, height = picture.size
            panel = np.asarray(picture.convert("RGB").crop((int(0.52 * width), int(0.05 * height), width, height // 2)))
        coloured[count] = int((np.ptp(panel.astype(int), axis=2) > 60).sum())
    assert coloured[0] == 0
    assert 4 < coloured[1] < coloured[9] / 5


@pytest.mark.parametrize("rate", [None, 20.0])
def test_rates_are_drawn_with_what_was_found(tmp_path: Path, rate: float | None) -> None:
    """Goals, misses, repeated probes and the rate found; a probe without an answer has no latency."""
    plan = LoadPlan(MIX)
    goals = [Goal.parse(text, ["ddim:1", "score"]) for text in ("p99<500ms", "errors<1%")]
    failed = [Outcome(0, 5.0, 0.0, 1.0, "UNAVAILABLE")]
    probes = [
        probe_of(offered, goals, summarise(plan, parse_mix(MIX), outcomes, {}))
        for offered, outcomes in ((10.0, ANSWERED[:3]), (20.0, ANSWERED), (20.0, ANSWERED[:2]), (40.0, failed))
    ]
    assert [probe.met for probe in probes] == [True, False, True, False]
    draw_rates(tmp_path / "rates.png", probes, (), None, "foot")
    plain = ink(tmp_path / "rates.png")
    draw_rates(tmp_path / "rates.png", probes, goals, Found(tuple(goals), rate, True, tuple(probes)), "foot")
    assert ink(tmp_path / "rates.png") > plain > 1000
