"""The fused MALA step against its twin, which is tested against float64 (`test_reference`)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import metropolis, ops, reference
from kernels.launch import Noise

from .cases import DEVICE, FORMATS, ROWS, SLOTS, channels_last, given_noise, keys, metropolis_case, same

POOLS = ("state", "place", "slope", "level")


def decisions() -> Noise:
    return keys()._replace(draws=keys().draws.flip(0).contiguous())


def twin_of(case: dict[str, torch.Tensor], noise: torch.Tensor, decision: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the twin returns, and does to the pools of `case`, for the rows that are chains."""
    chains = [0, 1, 2]
    rows = {name: case[name][chains] for name in ("slots", "energy", "gradient", "coefficients")}
    rows["gradient"] = rows["gradient"].flatten(1).float()
    rows["energy"] = rows["energy"].float()
    pools = {name: case[name] for name in POOLS}
    return reference.metropolis_step(**rows, **pools, decision=decision[chains], noise=noise[chains])


def clone(case: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in case.items()}


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize(("shape", "dtype"), FORMATS, ids=str)
def test_it_is_its_twin(shape, dtype, last, monkeypatch):
    """Pools, energies and norms of a chain that starts, one whose proposal is taken and one whose is not; whatever is
    no chain keeps its bytes, NaN included."""
    monkeypatch.setattr(metropolis, "BLOCK", 512)
    case = metropolis_case(shape, dtype)
    elements = case["state"].shape[1]
    twin, noise, decision = clone(case), given_noise(elements), torch.tensor([0.3, -3.0, 3.0, 0.0], device=DEVICE)
    _, levels, expected = twin_of(twin, noise, decision)
    if last:
        case["gradient"] = channels_last(case["gradient"])
    before = clone(case)
    energies, norms, nonfinite = metropolis.metropolis_step(**case, noise=noise, decision=decision)
    tolerance = 0.0 if DEVICE == "cpu" else 4e-6
    for name in POOLS:
        assert torch.allclose(case[name], twin[name], rtol=0.0, atol=tolerance, equal_nan=True), name
    assert torch.equal(energies[:3], levels)
    assert torch.allclose(norms[:3], expected, rtol=1e-6)
    assert nonfinite.tolist() == [0] * ROWS
    assert torch.equal(case["place"][SLOTS[1]], before["state"][SLOTS[1]])
    assert torch.equal(case["place"][SLOTS[2]], before["place"][SLOTS[2]])


def test_noise_and_decisions_of_keys_are_those_given():
    """The decision is the first number that its key gives, and the noise that of its own key."""
    given, keyed = metropolis_case((3, 7, 5)), metropolis_case((3, 7, 5))
    elements = given["state"].shape[1]
    decision = ops.normal(*(key.cpu() for key in decisions()), 1)[:, 0].to(DEVICE).contiguous()
    metropolis.metropolis_step(**given, noise=given_noise(elements), decision=decision)
    metropolis.metropolis_step(**keyed, noise=keys(), decision=decisions())
    for name in POOLS:
        assert torch.allclose(given[name], keyed[name], atol=4e-6, equal_nan=True), name


@pytest.mark.parametrize("odds", [0.5, 0.99, 1e-4])
@pytest.mark.parametrize("aside", [-0.001, 0.001])
def test_it_decides_at_the_odds_of_its_proposal(aside, odds):
    """Around the Gaussian below which such a share of all Gaussians is."""
    case = metropolis_case((3, 7, 5))
    noise, row, slot = given_noise(105), 1, SLOTS[1]
    b, a = (float(case["coefficients"][row, i]) for i in (0, 1))
    x, y, g = (case[name][slot].double() for name in ("place", "state", "slope"))
    h = case["gradient"][row].flatten().double()
    moves = (((y - x + a * b * g) ** 2).sum() - ((x - y + a * b * h) ** 2).sum()) / (4 * a)
    case["energy"][row] = case["level"][slot] + (moves - np.log(odds)) / b
    threshold = float(torch.special.ndtri(torch.tensor(odds, dtype=torch.float64)))
    before = clone(case)
    decision = torch.full((ROWS,), threshold + aside, device=DEVICE)
    metropolis.metropolis_step(**case, noise=noise, decision=decision)
    assert same(case["place"][slot], before["state" if aside < 0 else "place"][slot])


@pytest.mark.parametrize("where", ["outside", "nan", "energy"])
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # NumPy's, in the interpreter
def test_what_is_nowhere_is_refused(where):
    """A proposal outside the box, or not finite, or whose energy is not, leaves its chain where it is."""
    case = metropolis_case((3, 7, 5))
    if where == "energy":
        case["energy"][1] = torch.nan
    else:
        case["state"][SLOTS[1], 3] = 31.0 if where == "outside" else torch.nan
    before = clone(case)
    sure = torch.full((ROWS,), -6.0, device=DEVICE)
    energies, _, nonfinite = metropolis.metropolis_step(**case, decision=sure)
    assert torch.equal(case["place"][SLOTS[1]], before["place"][SLOTS[1]])
    assert energies[1] == before["level"][SLOTS[1]]
    assert nonfinite.tolist() == [0] * ROWS


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_a_start_that_is_not_finite_is_named():
    case = metropolis_case((3, 7, 5))
    case["state"][SLOTS[0], 5] = torch.inf
    _, _, nonfinite = metropolis.metropolis_step(**case, decision=torch.zeros(ROWS, device=DEVICE))
    assert nonfinite.tolist() == [1, 0, 0, 0]


def test_metropolis_operator_does_what_its_kernel_does():
    """Also where no row is a chain: it leaves all as it is."""
    case, through_operator = metropolis_case((3, 7, 5)), metropolis_case((3, 7, 5))
    found = metropolis.metropolis_step(**case, noise=keys(), decision=decisions())
    named = keys()._asdict() | {f"decision_{k}": v for k, v in decisions()._asdict().items() if k != "seeds"}
    for kernel, operator in zip(found, ops.metropolis_step(**through_operator, **named), strict=True):
        assert torch.allclose(kernel.float(), operator.float(), rtol=1e-6)
    for name in POOLS:
        assert torch.allclose(case[name], through_operator[name], atol=4e-6, equal_nan=True), name
    case["coefficients"][:] = 0.0
    before = clone(case)
    for step in (metropolis.metropolis_step, ops.metropolis_step):
        for returned in step(**case, decision=torch.zeros(ROWS, device=DEVICE)):
            assert not returned.any()
        for name in POOLS:
            assert same(case[name], before[name]), name


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("state", lambda t: t.half()),
        ("place", lambda t: t[:, 1:]),
        ("slope", lambda t: t.double()),
        ("level", lambda t: t[:3]),
        ("energy", lambda t: t[:3]),
        ("energy", lambda t: t[:, None]),
        ("gradient", lambda t: t[:3]),
        ("coefficients", lambda t: t[:, :5]),
        ("decision", lambda t: t.double()),
    ],
)
def test_metropolis_refuses_by_name(name, wrong):
    case = metropolis_case((3, 8, 8)) | {"decision": torch.zeros(ROWS, device=DEVICE)}
    case[name] = wrong(case[name])
    with pytest.raises(ValueError, match=name):
        metropolis.metropolis_step(**case)


def test_keys_of_decisions_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ValueError, match=r"decision\.draws"):
        metropolis.metropolis_step(
            **metropolis_case((3, 8, 8)), decision=decisions()._replace(draws=keys().draws.int())
        )
