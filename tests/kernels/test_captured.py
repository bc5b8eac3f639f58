"""A whole step in a CUDA graph: nothing in it waits for the device, and a replay does what the calls do."""

from __future__ import annotations

import pytest
import torch

from kernels import ops, reference

from .cases import ROWS, a_history, ensemble_case, gather_case, gaussian, keys, langevin_case, metropolis_case

pytestmark = pytest.mark.gpu
SHAPE = (3, 8, 8)

Tensors = dict[str, torch.Tensor]


def cases() -> dict[str, Tensors]:
    noise = keys()._asdict()
    decisions = {"decision_samples": keys().samples, "decision_draws": keys().draws.flip(0).contiguous()}
    history = {f"history_{name}": value for name, value in a_history(192)._asdict().items()}
    return {
        "gather": gather_case(SHAPE),
        "ensemble": ensemble_case(SHAPE) | noise | history,
        "langevin": langevin_case(SHAPE) | noise,
        "metropolis": metropolis_case(SHAPE) | noise | decisions,
        "twin": gather_case(SHAPE),
        "flat": ensemble_case((192,)),
        "normal": {"out": gaussian(ROWS, *SHAPE, seed=9)} | noise,
    }


def step(all_of: dict[str, Tensors]) -> None:
    ops.gather(**all_of["gather"])
    ops.normal_(**all_of["normal"])
    ops.ensemble_step(**all_of["ensemble"])
    ops.langevin_step(**all_of["langevin"])
    ops.metropolis_step(**all_of["metropolis"])
    reference.gather(**all_of["twin"])
    reference.ensemble_step(**all_of["flat"])


def test_a_captured_step_is_the_step():
    """Kernels and twins are captured together; two replays leave the same bytes as two plain calls."""
    plain, captured = cases(), cases()
    step(cases())  # compiled before the capture
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step(captured)
    for _ in range(2):
        step(plain)
        graph.replay()
    torch.cuda.synchronize()
    for name, tensors in plain.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor.nan_to_num(), captured[name][key].nan_to_num()), (name, key)


def test_nothing_in_a_step_waits_for_the_device():
    """torch raises where a call would synchronise."""
    tensors = cases()
    step(tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
