"""Whole requests on a GPU: small models, each contender once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.end_to_end import measure
from bench.end_to_end.bandwidth import copy_bandwidth
from bench.end_to_end.bundles import checkpoint_of, untraced
from bench.end_to_end.cases import Case, program_of
from bench.end_to_end.loaded import LoadedOnDevice
from bench.gpu.busy import measure_busy
from tests.bench.end_to_end.test_measure import BY_NAME, small

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda:0")


@pytest.mark.parametrize("model", ["digits-ddpm", "digits-hat"])
def test_everybody_runs_every_case(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Served by captured steps, bare by captured networks, and by a plain loop; the floor by bytes is told."""
    if model == "digits-ddpm":
        pytest.importorskip("diffusers")
    monkeypatch.setattr(measure, "MAX_ROUNDS", 2)
    result = measure.measure_end_to_end("cuda:0", 30.0, small(tmp_path, model, rows=(1, 3), engines=("torch",)))
    assert not result.left_out
    for cell in result.cells:
        assert {timing.contender for timing in cell.timings} == {"served", "bare", "eager"}, cell.left_out
        served = cell.timing("served")
        assert served is not None
        assert served.over_bare is not None
        assert served.over_bare.median > 0.9  # the bare loop does a part of what is served
        assert cell.floor is not None
        assert 0 < cell.floor < served.best


def test_torch_compile_takes_part(tmp_path: Path):
    """With its CUDA graphs, over steps whose outputs go into the next."""
    bundle = untraced(checkpoint_of(BY_NAME["digits-hat"], tmp_path), "bfloat16")
    case = Case("digits-hat", "langevin", 6, 2)
    with LoadedOnDevice(bundle, "torch", DEVICE, 1) as loaded:
        run = loaded.make("compiled", case, program_of(bundle.card, case))
        assert all(run().seconds > 0 for _ in range(3))


def test_the_copy_bandwidth_is_a_gpus():
    """Tens of GB/s at least; a CPU's would be below the fastest memory there is."""
    assert 50e9 < copy_bandwidth(DEVICE) < 50e12


def test_the_gpus_share_under_load(tmp_path: Path):
    """By events and by the profiler, within the time that there is."""
    pytest.importorskip("diffusers")
    bundle = untraced(checkpoint_of(BY_NAME["digits-ddpm"], tmp_path), "bfloat16")
    found = measure_busy(bundle, DEVICE, 4.0)
    assert 0.1 < found.share <= 1.01
    assert found.kernels is not None
    assert 0.0 < found.kernels <= 1.01
