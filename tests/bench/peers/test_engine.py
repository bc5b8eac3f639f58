"""The engine underneath the peers computes what the offline loop does, in whatever company."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.peers.engine import Engine, Request, RequestError
from models.bundle import load_bundle
from models.checkpoint import load_checkpoint, load_modules
from models.program import EnsembleUpdate, Program
from models.run import networks_of, run
from models.samplers import SampleOptions, compile_sample, compile_score, find_scale

from ...conftest import ROOT, ZOO

TOLERANCE = 1e-5
NETWORK_ERROR = 2e-6
"""Of a network's output, torch against ONNX Runtime."""
CASES = {
    "ddim": ("digits-ddpm", SampleOptions(sampler="ddim", steps=5), None),
    "ddim one step": ("digits-ddpm", SampleOptions(sampler="ddim", steps=1), [3, 4]),
    "stochastic": ("digits-ddpm", SampleOptions(sampler="ddim", steps=6, eta=0.7), [9, 1]),
    "iddim": ("digits-ddpm", SampleOptions(sampler="iddim", steps=10, m=(0.6,)), [0, 2]),
    "accumulator": ("digits-ddpm", SampleOptions(sampler="iddim", steps=7, m=(0.5,), form="accumulator"), None),
    "guidance": ("digits-ddpm", SampleOptions(sampler="iddim", steps=5, guidance=1.5), [4, 5]),
    "ancestral": ("digits-ddpm", SampleOptions(sampler="ancestral", steps=6, guidance=0.5), [2, 7]),
    "vdrme": ("digits-vdrme", SampleOptions(sampler="vdrme", steps=4), [1, 8]),
    "langevin": ("digits-vdrme", SampleOptions(sampler="langevin", steps=12), None),
    "clipped langevin": (
        "digits-vdrme",
        SampleOptions(sampler="langevin", steps=5, parameters=(("max_displacement", (0.01,)),)),
        None,
    ),
}


@lru_cache
def engine(repository: Path, model: str) -> Engine:
    return Engine(load_bundle(repository / model / "1"), threads=1)


def offline(model: str, options: SampleOptions, labels: list[int] | None, seed: int, place: int) -> np.ndarray:
    card = load_checkpoint(ZOO / model)
    networks = networks_of(card, load_modules(ZOO / model, card.modules))
    label = None if labels is None else [labels[place]]
    return run(compile_sample(card, options), card, networks, seed=seed, count=1, labels=label).state.numpy()


def gain(program: Program) -> float:
    """How much larger the rounding of a network's output is in the sample: a step from pure noise divides by 1/157."""
    rules = [u.rule for line in program.lines for u in line.updates if isinstance(u.rule, EnsembleUpdate)]
    return max((abs(rule.p_output * rule.prediction) * (1 + 2 * rule.guidance) for rule in rules), default=1.0)


def request(repository: Path, case: str, seeds: list[int]) -> Request:
    model, options, labels = CASES[case]
    return Request(compile_sample(engine(repository, model).card, options), seeds, labels)


@pytest.mark.parametrize("case", CASES)
def test_samples_equal_the_offline_loop(repository: Path, case: str) -> None:
    """Row i is sample 0 of seed i, as the server's Open Inference Protocol has it."""
    model, options, labels = CASES[case]
    asked = request(repository, case, [11, 12])
    (images,) = engine(repository, model).run([asked])
    tolerance = max(TOLERANCE, NETWORK_ERROR * gain(asked.program))
    for place, seed in enumerate((11, 12)):
        wanted = offline(model, options, labels, seed, place)[0]
        np.testing.assert_allclose(images[place], wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("model", ["digits-ddpm", "digits-vdrme"])
def test_a_request_gets_the_same_in_company(repository: Path, model: str) -> None:
    """Requests of other samplers, lengths and labels in the batch change nothing."""
    cases = [case for case, (name, _, _) in CASES.items() if name == model]
    asked = [request(repository, case, [5 * index, 5 * index + 1]) for index, case in enumerate(cases)]
    together = engine(repository, model).run(asked)
    for alone, images in zip(asked, together, strict=True):
        (expected,) = engine(repository, model).run([alone])
        np.testing.assert_allclose(images, expected, rtol=0, atol=TOLERANCE)


def test_scores_equal_the_offline_loop(repository: Path) -> None:
    """A score's answer is the served energy, with its sign and scale, beside samples of the same model."""
    images = np.random.Generator(np.random.PCG64(3)).uniform(-1, 1, (3, 1, 8, 8)).astype(np.float32)
    served = engine(repository, "digits-vdrme")
    sampled, energies = served.run([request(repository, "vdrme", [1, 2]), served.score_request(images)])
    card = load_checkpoint(ZOO / "digits-vdrme")
    networks = networks_of(card, load_modules(ZOO / "digits-vdrme", card.modules))
    program = compile_score(card, find_scale(card, None))
    found = run(program, card, networks, seed=0, count=3, images=torch.from_numpy(images)).energy
    assert card.energy is not None
    assert found is not None
    expected = found.double().numpy() * card.energy.sign * card.energy.scale
    np.testing.assert_allclose(energies, expected, rtol=1e-5, atol=TOLERANCE)
    assert sampled.shape == (2, 1, 8, 8)


def test_what_it_does_not_serve_is_refused(repository: Path) -> None:
    """Labels that do not match, images of another shape, and methods that are not compared are named."""
    served = engine(repository, "digits-ddpm")
    with pytest.raises(RequestError, match="labels: must be one for each of 2 seeds, got 1"):
        served.sample_request("ddim", 1, [1, 2], [3])
    with pytest.raises(RequestError, match="images"):
        engine(repository, "digits-vdrme").score_request(np.zeros((1, 1, 4, 4), np.float32))
    custom = compile_sample(served.card, SampleOptions(sampler="custom", steps=2, weights=((1.0,), (1.0, 1.0))))
    with pytest.raises(RequestError, match="custom"):
        served.run([Request(custom, [1])])


def test_it_needs_neither_torch_nor_grpc() -> None:
    """It runs in the peers' environments, which have neither."""
    code = "import sys, bench.peers.serving; print([m for m in ('torch', 'grpc', 'scipy', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
