"""The torch operators: what the kernels do, on any device, and well formed."""

from __future__ import annotations

import torch

from kernels import ensemble, langevin, ops
from kernels.launch import History, Noise

from .cases import DEVICE, ROWS, a_history, ensemble_case, gather_case, gaussian, keys, langevin_case, metropolis_case


def operator_arguments() -> dict[str, torch.Tensor]:
    case = ensemble_case((3, 7, 5)) | {f"history_{name}": value for name, value in a_history(105)._asdict().items()}
    case["prediction"], case["network_input"] = torch.zeros(6, 105, device=DEVICE), torch.zeros_like(case["output"])
    case["prediction_rows"] = torch.tensor([5, -1, 0, 2], device=DEVICE)
    return case | dict(zip(("seeds", "samples", "draws"), keys(), strict=True))


def test_the_operator_does_what_the_kernel_does():
    """On the CPU the operator is the twins; every tensor that it writes is the kernel's."""
    case, through_operator = operator_arguments(), operator_arguments()
    noise = Noise(*(case.pop(name) for name in ("seeds", "samples", "draws")))
    history = History(*(case[f"history_{name}"] for name in History._fields))
    case = {name: value for name, value in case.items() if not name.startswith("history_")}
    flags = ensemble.ensemble_step(**case, noise=noise, history=history)
    assert torch.equal(ops.ensemble_step(**through_operator), flags)
    case["history_pool"] = history.pool
    for name in ("state", "accumulator", "prediction", "network_input", "history_pool"):
        assert torch.allclose(case[name], through_operator[name], atol=4e-6, equal_nan=True), name


def test_the_operators_are_well_formed():
    """torch's own checks: schemas, what is mutated, fake tensors, export."""
    torch.library.opcheck(ops.ensemble_step, (), operator_arguments())
    chain = langevin_case((3, 7, 5)) | dict(zip(("seeds", "samples", "draws"), keys(), strict=True))
    torch.library.opcheck(ops.langevin_step, (), chain)
    decisions = {"decision_samples": keys().samples, "decision_draws": keys().draws}
    torch.library.opcheck(ops.metropolis_step, (), metropolis_case((3, 7, 5)) | keys()._asdict() | decisions)
    torch.library.opcheck(ops.gather, (), gather_case((3, 7, 5)))
    torch.library.opcheck(ops.normal_, (gaussian(ROWS, 3, 7, 5, seed=0), *keys()))


def test_langevins_operator_does_what_its_kernel_does():
    case, through_operator = langevin_case((3, 7, 5)), langevin_case((3, 7, 5))
    norms, flags = langevin.langevin_step(**case, noise=keys())
    found = ops.langevin_step(**through_operator, **keys()._asdict())
    assert torch.allclose(found[0], norms)
    assert torch.equal(found[1], flags)
    assert (case["state"] - through_operator["state"]).abs().max() < 4e-6
