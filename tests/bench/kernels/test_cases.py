"""The bytes that the bandwidths are made of, and that every contender does the case's work."""

from __future__ import annotations

import pytest
import torch

from bench.kernels.cases import QUICK_SIZES, SIZES, VARIANTS, Case, all_cases
from bench.kernels.contenders import eager, operands, ours

CPU = torch.device("cpu")
SMALL = all_cases(quick=False, sizes=((3, 4),))


def case(kernel: str, variant: str, dtype: torch.dtype = torch.float32) -> Case:
    return Case(kernel, variant, 2, (3, 4, 4), dtype, False)


@pytest.mark.parametrize(
    ("kernel", "variant", "single", "half"),
    [
        ("ensemble", "plain", 12, 10),  # state twice, output
        ("ensemble", "guided", 16, 12),  # and the other output
        ("ensemble", "accumulator", 20, 18),  # state and accumulator twice, output
        ("ensemble", "noise", 12, 10),
        ("langevin", "no clip", 12, 10),
        ("langevin", "clip", 12, 10),
        ("gather", "no start", 8, 6),
        ("gather", "start", 12, 10),
    ],
)
def test_bytes_are_each_tensor_once(kernel, variant, single, half):
    """Bytes an element, counted by hand."""
    assert case(kernel, variant).bytes == 2 * 48 * single
    assert case(kernel, variant, torch.bfloat16).bytes == 2 * 48 * half


def test_every_kernel_is_measured_at_every_size():
    """From 32 rows of 3x32x32 to 64 of 3x256x256, each variant once for each type; quick measures some of them."""
    cases = all_cases(quick=False)
    sizes = {(each.rows, each.shape[1]) for each in cases}
    assert sizes == set(SIZES) >= {(32, 32), (64, 256)}
    assert len(set(cases)) == len(cases) == len(SIZES) * 3 * sum(map(len, VARIANTS.values()))
    assert set(QUICK_SIZES) < set(SIZES)
    assert set(all_cases(quick=True)) < set(cases)


@pytest.mark.parametrize("each", SMALL, ids=lambda each: each.name)
def test_plain_torch_does_the_same_work(each):
    """Without noise all contenders leave the same in every tensor; with noise, other numbers in the same places."""
    mine, theirs = operands(each, CPU, 1), operands(each, CPU, 1)
    before = {name: tensor.clone() for name, tensor in mine.items()}
    if each.kernel == "langevin":
        mine["coefficients"][:, 3] = theirs["coefficients"][:, 3] = 0.0
    if each.kernel == "langevin" and each.variant == "clip":
        assert (mine["network"].flatten(1).float().norm(dim=1) * 0.1 > mine["coefficients"][:, 4]).all()
    ours(each)(mine)
    eager(each)(theirs)
    noisy = each.variant in ("noise", "start")
    for name, tensor in mine.items():
        changed = [not torch.equal(t[name], before[name]) for t in (mine, theirs)]
        assert changed[0] == changed[1] or name == "coefficients", name
        if not noisy:
            assert torch.allclose(tensor, theirs[name], atol=1e-5), name
    written = {"ensemble": {"state"}, "langevin": {"state"}, "gather": {"network"}}[each.kernel]
    written |= {"accumulator": {"accumulator"}, "start": {"state", "anchor"}}.get(each.variant, set())
    assert {name for name in mine if not torch.equal(mine[name], before[name])} - {"coefficients"} == written


def test_the_sets_of_inputs_differ():
    """So that no value of one is that of another."""
    one, two = (operands(case("ensemble", "plain"), CPU, seed) for seed in (0, 1))
    assert not torch.equal(one["state"], two["state"])
    assert not torch.equal(one["network"], two["network"])
