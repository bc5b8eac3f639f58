"""The fused Langevin update against float64 and against its twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import langevin, reference

from .cases import DEVICE, FORMATS, ROWS, SLOTS, assert_is_cast, channels_last, given_noise, keys, langevin_case


@pytest.mark.parametrize("whole_row", [16384, 512], ids=["one program a row", "several"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize(("shape", "dtype"), FORMATS, ids=str)
def test_langevin_step_is_its_formula(shape, dtype, last, whole_row, monkeypatch):
    """State, norm and next input against float64, whether or not a row fits into one program."""
    monkeypatch.setattr(langevin, "WHOLE_ROW", whole_row)
    monkeypatch.setattr(langevin, "BLOCK", 512)
    case = langevin_case(shape, dtype)
    k = case["coefficients"].cpu().double().numpy()[:, :, None]
    g = case["gradient"].cpu().double().flatten(1).numpy()
    x, anchor = (case[name].cpu().double().numpy()[list(SLOTS)] for name in ("state", "anchor"))
    norm = np.linalg.norm(g, axis=1)
    d = k[:, 2] * g
    d *= np.minimum(1.0, k[:, 4] / np.linalg.norm(d, axis=1, keepdims=True))
    n = given_noise(g.shape[1]).cpu().double().numpy()
    expected = np.clip(k[:, 0] * x + np.where(k[:, 1] != 0, k[:, 1] * anchor, 0.0) + d + k[:, 3] * n, k[:, 5], k[:, 6])
    if last:
        case["gradient"] = channels_last(case["gradient"])
    network_input = torch.empty_like(case["gradient"])
    norms, nonfinite = langevin.langevin_step(**case, noise=keys(), network_input=network_input)
    assert np.allclose(case["state"][list(SLOTS)].cpu(), expected, rtol=2e-6, atol=6e-6)
    assert np.allclose(norms.cpu(), norm, rtol=1e-6)
    assert_is_cast(network_input.reshape(ROWS, -1), case["state"][list(SLOTS)])
    assert nonfinite.tolist() == [0] * ROWS


@pytest.mark.parametrize("clips", [True, False])
def test_given_noise_is_langevins_twin_exactly(clips, monkeypatch):
    """With the same noise the interpreter rounds as torch does, with a second reading of the gradient and without."""
    monkeypatch.setattr(langevin, "WHOLE_ROW", 64)
    case, twin, noise = langevin_case((3, 40, 50)), langevin_case((3, 40, 50)), given_noise(6000)
    if not clips:
        for each in (case, twin):
            each["coefficients"][:, 4] = torch.inf
    norms, _ = langevin.langevin_step(**case, noise=noise, clips=clips)
    twin["gradient"] = twin["gradient"].flatten(1)
    _, expected = reference.langevin_step(**twin, noise=noise)
    assert (case["state"] - twin["state"]).abs().max() <= (0.0 if DEVICE == "cpu" else 4e-6)
    assert torch.allclose(norms, expected, rtol=1e-6)


def test_a_steep_gradient_is_bounded_and_not_lost():
    """A gradient whose squares overflow float32 still moves the row by its bound, in its direction."""
    case = langevin_case((3, 7, 5))
    case["gradient"][1] *= 1e25
    before = case["state"][SLOTS[1]].clone()
    norms, nonfinite = langevin.langevin_step(**case)
    moved = case["state"][SLOTS[1]] - (0.9 * before + 0.1 * case["anchor"][SLOTS[1]])
    assert float(moved.norm()) == pytest.approx(0.7, rel=1e-4)
    assert float(norms[1]) > 1e25
    assert nonfinite.tolist() == [0] * ROWS


def test_a_gradient_that_is_not_finite_is_named():
    """NaN flags its row and no other; the box does not turn it into a number."""
    case = langevin_case((3, 7, 5))
    case["gradient"][2, 0, 0, 0] = torch.nan
    _, nonfinite = langevin.langevin_step(**case)
    assert nonfinite.tolist() == [0, 0, 1, 0]
    assert case["state"][SLOTS[2]].isnan().any()
