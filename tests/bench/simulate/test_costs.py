"""Files of costs, and the steps that are drawn from them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.simulate.costs import CostError, Costs, Group, HostCost, StepCost, StepTable, load_costs, save_costs

STEP = StepCost("a", "net", "ensemble", (1, 4, 8), ((1.0, 3.0), (4.0, 6.0), (10.0,)))


def test_costs_come_back_from_their_file(tmp_path: Path) -> None:
    """All of them, with where they come from."""
    costs = Costs((STEP,), HostCost(0.1, 0.2, 0.3), between=0.1, wake=0.2, delays=(0.1, 0.2), source={"cores": 2})
    save_costs(tmp_path / "new" / "costs.json", costs)
    assert load_costs(tmp_path / "new" / "costs.json") == costs


@pytest.mark.parametrize(("rows", "mean"), [(1, 2.0), (2, 3.0), (4, 5.0), (6, 7.5), (8, 10.0), (16, 20.0)])
def test_the_mean_goes_through_what_was_measured_and_on_in_a_straight_line(rows, mean):
    """Between two sizes, and beyond the largest."""
    table = StepTable(STEP)
    assert table.mean(rows) == pytest.approx(mean)
    rng = random.Random(0)
    assert sum(table.draw(rows, rng.random) for _ in range(20_000)) / 20_000 == pytest.approx(mean, rel=0.02)


def test_drawn_steps_are_measured_ones():
    """At a size that was measured nothing else comes, and each of them does."""
    rng = random.Random(0)
    assert {StepTable(STEP).draw(4, rng.random) for _ in range(100)} == {4.0, 6.0}


def test_two_numbers_describe_a_step():
    """As `a n + b` does, for any n."""
    table = StepTable(StepCost("a", "n", "k", (1, 2), ((0.003,), (0.004,))))
    assert table.mean(64) == pytest.approx(0.002 + 64 * 0.001)


def test_noise_never_makes_a_large_batch_shorter_than_a_measured_smaller_one():
    """Beyond the largest size two noisy ones may point down."""
    table = StepTable(StepCost("a", "n", "k", (32, 64), ((2.0,), (1.9,))))
    assert table.draw(128, random.Random(0).random) == 2.0
    assert table.mean(640) == 2.0


ONE = '{"steps": [{"model": "a", "network": "n", "kind": "k", "rows": %s, "seconds": %s}]}'


@pytest.mark.parametrize(("text", "words"), [
    ("{", "costs"),
    ("{}", "steps"),
    ('{"steps": [], "wake": -1}', "wake must be finite and not negative"),
    ('{"steps": [], "delays": []}', "delays: must hold at least one"),
    ('{"steps": [], "hosts": 1}', "hosts"),
    ('{"steps": [], "sample": {"receive": -1.0}}', "host must be finite"),
    (ONE % ("[2, 1]", "[[1.0], [1.0]]"), "increasing"),
    (ONE % ("[1]", "[[]]"), "at least one value"),
    (ONE % ("[1]", "[[0.0]]"), "must be positive"),
])  # fmt: skip
def test_a_wrong_file_is_refused(tmp_path, text, words):
    """The error names the file and the field."""
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(CostError, match=words) as caught:
        load_costs(path)
    assert "costs.json" in str(caught.value)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    """By measuring."""
    with pytest.raises(CostError, match="--measure"):
        load_costs(tmp_path / "none.json")


def test_a_step_twice_and_a_step_that_is_not_there():
    """Both are named."""
    with pytest.raises(ValueError, match=r"a/net \(ensemble\) stands twice"):
        Costs((STEP, STEP))
    with pytest.raises(CostError, match=r"b/net \(score\); there are: a/net"):
        Costs((STEP,)).table(Group("b", "net", "score"))
