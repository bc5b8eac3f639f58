"""The measurements themselves, on sessions whose errors are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from export import ExportError, parity
from export.parity import (
    draw_inputs,
    is_batch_invariant,
    measure_parity,
    own_error,
    probe_rows,
    probe_seeds,
    reference_outputs,
)
from models.card import NetworkSpec, TensorSpec
from models.checkpoint import load_checkpoint, load_modules

from . import tiny

SPEC = tiny.forward_spec("scale")
CARD = tiny.card({}, {})


class Computed:
    """A session that computes what it is told."""

    name = "computed"

    def __init__(self, function):
        self.function = function

    def run(self, inputs):
        return (self.function(torch.from_numpy(inputs["sample"])).numpy(),)


def checks(graph, network):
    return measure_parity(Computed(graph), lambda sample: (network(sample),), CARD, SPEC)


def test_error_is_relative_to_large_outputs_and_absolute_for_small_ones():
    """The error is max|graph - torch| / max(1, max|torch|)."""
    small = checks(lambda x: 0 * x + 0.25, lambda x: 0 * x)
    large = checks(lambda x: 0 * x + 101, lambda x: 0 * x + 100)
    assert {check.error for check in small} == {0.25}
    assert [check.error for check in large] == pytest.approx([0.01] * 4)
    assert {(check.rows, check.seed, check.output) for check in small} == {
        (rows, seed, "output") for rows in (1, 7) for seed in (0, 1)
    }


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("both", [False, True])
def test_values_that_are_not_finite_never_pass(value, both):
    """NaN compares false with any bound, so it must count as an infinite error, even where torch agrees."""
    found = checks(lambda x: x * value, lambda x: x * value if both else x)
    assert {check.error for check in found} == {math.inf}


def test_a_lost_batch_axis_never_passes():
    """An output that would broadcast against torch's is an error."""
    found = checks(lambda x: x[:1, :1, :1, :1], lambda x: 0 * x)
    assert {check.error for check in found} == {math.inf}


def test_a_baked_result_is_found_by_the_second_input():
    """A graph that returns the traced answer agrees at that input and nowhere else."""
    answer = draw_inputs(CARD, SPEC, 7, seed=0)["sample"]
    found = checks(lambda x: answer[: len(x)] if len(x) == 7 else x, lambda x: x)
    assert {(check.rows, check.seed) for check in found if check.error > 1e-5} == {(7, 1)}


def test_torchs_own_error_is_taken_against_double_precision(tmp_path):
    """With outputs known in closed form: what rounding to float32 does, and what float32 by name hides from double."""
    third = torch.nn.Parameter(torch.full(tiny.IMAGE, 1.0 / 3.0), requires_grad=False)

    class Thirds(tiny.Scale):
        def forward(self, sample):
            return (self.weight * sample.float()).to(torch.float32) / torch.tensor(3.0, dtype=torch.float32)

    module = Thirds()
    module.weight = third
    card = load_checkpoint(tiny.save(tmp_path, {"scale": SPEC}))
    found = own_error(card, "scale", {SPEC.module: module}, rows=7, seed=1)
    sample = draw_inputs(card, SPEC, 7, seed=1)["sample"]
    exact = third.double() * sample.double() / 3.0
    assert found == pytest.approx(float((third * sample / torch.tensor(3.0) - exact).abs().max()), rel=1e-6)  # below 1
    assert 1e-9 < found < 1e-6
    assert third.dtype == torch.float32


def test_torchs_own_error_of_a_gradient(tmp_path):
    """Every output counts, gradients too: of U = |w x|^2 / 2 they are w^2 x."""
    spec = tiny.gradient_spec("quadratic")
    directory = tiny.save(tmp_path, {"energy_gradient": spec})
    card = load_checkpoint(directory)
    found = own_error(card, "energy_gradient", load_modules(directory, card.modules), rows=1, seed=0)
    assert 1e-8 < found < 1e-6


def test_inputs_are_drawn_as_served():
    """States and latents are standard normal, times are 0..999, every label and the null one occurs, seeds repeat."""
    spec = tiny.forward_spec("denoiser", tiny.TIME, tiny.LABEL, TensorSpec(name="latent", shape=(16,)))
    inputs = draw_inputs(CARD, spec, 4000, seed=3)
    for name in ("sample", "latent"):
        assert abs(float(inputs[name].mean())) < 0.02
        assert abs(float(inputs[name].var()) - 1) < 0.02
    assert inputs["latent"].shape == (4000, 16)
    assert 0 <= float(inputs["time"].min()) < 5
    assert 994 < float(inputs["time"].max()) <= 999
    assert set(inputs["label"].tolist()) == set(range(11))
    again = draw_inputs(CARD, spec, 4000, seed=3)
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: 2 * x, True),
        (lambda x: x * math.nan, True),
        (lambda x: x + 1e-6 * len(x), False),
        (lambda x: x + 1e-6 * x.mean(dim=0), False),
        (lambda x: x + torch.arange(len(x)).reshape(-1, 1, 1, 1) * 1e-6, False),
        (lambda x: x * 0 if len(x) == 1 else x * -0.0, False),
    ],
)
def test_batch_invariance(function, expected):
    """A row must give the same bits alone and in company: size, neighbours and place must not matter."""
    assert is_batch_invariant(Computed(function), {"sample": torch.randn(32, 1, 8, 8)}) is expected
    assert is_batch_invariant(Computed(function), {"sample": torch.randn(8, 1, 8, 8)}) is expected


def test_a_slow_network_is_tried_with_fewer_rows(monkeypatch: pytest.MonkeyPatch):
    """By the clock: at 0.1 s a row with 32, at 0.3 s with 8."""
    for seconds, rows in ((0.1, 32), (0.3, 8)):
        now = iter((10.0, 10.0 + seconds))
        monkeypatch.setattr(parity, "time", SimpleNamespace(perf_counter=lambda now=now: next(now)))
        assert probe_rows(Computed(lambda x: x), {"sample": torch.randn(3, 1, 8, 8)}) == rows


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda sample: (sample, sample), "float32.*float32"),
        (lambda sample: (sample.flatten(1),), r"float32\[2, 64\]"),
        (lambda sample: (sample.double(),), "float64"),
        (lambda image: (image,), "sample"),
    ],
)
def test_a_card_that_does_not_describe_its_module(function, message):
    """Number, shape and type of outputs and the names of inputs are checked before anything is traced."""
    with pytest.raises(ExportError, match=message):
        reference_outputs(function, SPEC, draw_inputs(CARD, SPEC, 2, seed=0))


def test_rows_that_share_vectors_are_tried_more_often():
    """Whole vectors need one probe; a latent of 12 values, whose neighbours share its vectors, gets many."""
    whole = NetworkSpec(module="m", inputs=(TensorSpec(name="sample", shape=(1, 8, 8)),), outputs=())
    shared = NetworkSpec(module="m", inputs=(TensorSpec(name="u1", shape=(12,)),), outputs=())
    assert len(probe_seeds(whole)) == 1
    assert len(probe_seeds(shared)) >= 16
