"""What the server returns equals the offline loop: for every sampler, alone and in a crowd."""

from __future__ import annotations

import math
import random
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from models.card import ModelCard
from models.checkpoint import load_checkpoint, load_modules
from models.data import load_digits_split
from models.run import networks_of, run
from models.samplers import SampleOptions, compile_refine, compile_sample, compile_score
from protos import fewstep_pb2 as pb

from ..conftest import SERVED, ZOO
from ..running import RunningServer, running_server

CASES = {
    "ddim": {"model": "digits-ddpm", "sampler": "ddim", "steps": 5},
    "ddim linear": {"model": "digits-ddpm", "sampler": "ddim", "steps": 70, "spacing": "linear"},
    "ddim one step": {"model": "digits-ddpm", "sampler": "ddim", "steps": 1, "labels": [3]},
    "ddim stochastic": {"model": "digits-ddpm", "sampler": "ddim", "steps": 6, "eta": 0.7, "labels": [9]},
    "iddim": {"model": "digits-ddpm", "sampler": "iddim", "steps": 10, "m": [0.6], "labels": [0, 1, 2]},
    "iddim m per step": {"model": "digits-ddpm", "sampler": "iddim", "steps": 4, "m": [0.1, 0.9, 0.4, 0.2]},
    "iddim accumulator": {"model": "digits-ddpm", "sampler": "iddim", "steps": 7, "m": [0.5], "form": "accumulator"},
    "radical": {"model": "digits-ddpm", "sampler": "radical", "steps": 8, "labels": [7]},
    "custom": {"model": "digits-ddpm", "sampler": "custom", "steps": 3, "weights": [[1], [1, 3], [0, 1, 1]]},
    "guidance": {"model": "digits-ddpm", "sampler": "iddim", "steps": 5, "guidance": 1.5, "labels": [4, 5, 6]},
    "ancestral": {"model": "digits-ddpm", "sampler": "ancestral", "steps": 6, "guidance": 0.5, "labels": [2]},
    "temperature": {"model": "digits-ddpm", "sampler": "ddim", "steps": 3, "temperature": 0.7},
    "vdrme 4": {"model": "digits-vdrme", "sampler": "vdrme", "steps": 4},
    "vdrme 6": {"model": "digits-vdrme", "sampler": "vdrme", "steps": 6},
    "vdrme 8": {"model": "digits-vdrme", "sampler": "vdrme", "steps": 8},
    "langevin": {"model": "digits-vdrme", "sampler": "langevin", "steps": 12},
    "gdim": {"model": "digits-gdim", "sampler": "gdim", "labels": [3, 1, 4]},
    "gdim augmented": {"model": "digits-gdim", "sampler": "gdim", "m": [0.6]},
    "hat without steps": {"model": "digits-hat", "sampler": "hat", "parameters": {"stage": [0]}},
    "hat stage 1": {"model": "digits-hat", "sampler": "hat", "steps": 10, "parameters": {"stage": [1]}},
    "hat stage 2": {"model": "digits-hat", "sampler": "hat", "steps": 6, "parameters": {"stage": [2]}},
    "latent": {"model": "digits-latent", "sampler": "latent", "labels": [8], "parameters": {"langevin_steps": [4]}},
    "latent held": {
        **{"model": "digits-latent", "sampler": "latent", "temperature": 0.7},
        "parameters": {"langevin_steps": [3], "hold": [2, 3]},
    },
    "checkerboard": {"model": "checkerboard-vdrme", "sampler": "vdrme", "steps": 5},
}

REFINEMENTS = {
    "refine by langevin": {"model": "digits-vdrme", "method": "langevin", "steps": 6, "temperature": 0.5},
    "refine by transition": {"model": "digits-hat", "method": "transition", "steps": 2},
}
"""Caller's images, the test digits, taken towards the data."""
REQUESTS = (*CASES, *REFINEMENTS)


def send(server: RunningServer, name: str, *, seed: int, count: int = 3) -> pb.SampleResponse | pb.RefineResponse:
    """One sample or refinement, by the name of its case."""
    if name in CASES:
        return server.sample(request(name, seed=seed, count=count))
    pictures = digits(count)
    message = pb.Images(shape=pictures.shape, raw=pictures.astype("<f4").tobytes())
    return server.refine(pb.RefineRequest(**REFINEMENTS[name], images=message, seed=seed))


def digits(count: int) -> np.ndarray:
    return load_digits_split().test.images[:count]


def request(name: str, *, seed: int, count: int = 3) -> pb.SampleRequest:
    fields = dict(CASES[name])
    weights = [pb.Weights(values=row) for row in fields.pop("weights", [])]
    parameters = {key: pb.Numbers(values=values) for key, values in fields.pop("parameters", {}).items()}
    return pb.SampleRequest(**fields, weights=weights, parameters=parameters, seed=seed, count=count)


def images(response: pb.SampleResponse | pb.RefineResponse) -> np.ndarray:
    return np.frombuffer(response.images.raw, "<f4").reshape(tuple(response.images.shape))


@lru_cache
def offline(model: str) -> tuple[ModelCard, dict]:
    card = load_checkpoint(ZOO / model)
    return card, networks_of(card, load_modules(ZOO / model, card.modules))


def expected(name: str, *, seed: int, count: int = 3) -> np.ndarray:
    fields = dict(CASES[name])
    card, networks = offline(fields.pop("model"))
    labels = fields.pop("labels", None)
    if labels is not None and len(labels) == 1:
        labels = labels * count
    fields["weights"] = tuple(tuple(map(float, row)) for row in fields.get("weights", ()))
    fields["m"] = tuple(fields.get("m", ()))
    parameters = sorted(fields.pop("parameters", {}).items())
    fields["parameters"] = tuple((name, tuple(map(float, values))) for name, values in parameters)
    return run(
        compile_sample(card, SampleOptions(**fields)), card, networks, seed=seed, count=count, labels=labels
    ).state.numpy()


@pytest.mark.parametrize("name", CASES)
def test_the_server_returns_what_the_offline_loop_returns(server: RunningServer, name):
    """For the same seed the served samples are the offline loop's to 1e-4, for every sampler."""
    response = server.sample(request(name, seed=2**63 + 5))
    assert response.seed == 2**63 + 5
    wanted = expected(name, seed=2**63 + 5)
    scale = max(1.0, float(np.abs(wanted).max()))  # Langevin without a box may leave [-1, 1]
    assert np.abs(images(response) - wanted).max() <= 1e-4 * scale


@pytest.mark.parametrize("name", REFINEMENTS)
def test_a_refinement_is_the_offline_loop_s(server: RunningServer, name):
    """Refined images and their energies afterwards are the offline loop's."""
    fields = dict(REFINEMENTS[name])
    card, networks = offline(fields.pop("model"))
    program = compile_refine(card, SampleOptions(sampler=fields.pop("method"), **fields))
    wanted = run(program, card, networks, seed=9, count=3, images=torch.tensor(digits(3)))
    response = send(server, name, seed=9)
    assert np.abs(images(response) - wanted.state.numpy()).max() <= 1e-4
    factor = card.energy.sign * card.energy.scale
    assert np.allclose(response.energy_after, factor * wanted.scores[-1].numpy(), rtol=1e-4, atol=1e-3)


def test_the_torch_engine_returns_it_too(repository: Path):
    """The second engine, behind the same protocol, gives the same samples and scores."""
    pictures = load_digits_split().test.images[:4]
    message = pb.Images(shape=pictures.shape, raw=pictures.astype("<f4").tobytes())
    with running_server(repository, engine="torch") as server:
        for name in ("iddim", "guidance", "vdrme 4", "langevin", "hat stage 2", "latent held"):
            assert np.abs(images(server.sample(request(name, seed=3))) - expected(name, seed=3)).max() <= 1e-4
        scores = server.score(pb.ScoreRequest(model="digits-vdrme", images=message)).scores[0]
        assert np.allclose(scores.energy, offline_energy("digits-vdrme", pictures, 0), rtol=1e-4, atol=1e-4)


def offline_energy(model: str, pictures: np.ndarray, scale: int, seed: int = 0) -> np.ndarray:
    card, networks = offline(model)
    program = compile_score(card, card.energy.scales[scale])
    result = run(program, card, networks, seed=seed, count=len(pictures), images=torch.tensor(pictures))
    return result.energy.numpy() * card.energy.sign * card.energy.scale


@pytest.mark.parametrize("model", [name for name in SERVED if load_checkpoint(ZOO / name).energy is not None])
def test_scores_at_every_scale_are_the_offline_energies(server: RunningServer, model):
    """Energies at all scales, noisy ones and averages over draws included, are the offline loop's for the seed."""
    card, _ = offline(model)
    pictures = load_digits_split().test.images[:3].reshape(-1)[: 3 * math.prod(card.image.shape)]
    pictures = pictures.reshape(3, *card.image.shape)
    message = pb.Images(shape=pictures.shape, raw=pictures.astype("<f4").tobytes())
    response = server.score(pb.ScoreRequest(model=model, images=message, scales=["all"], seed=77))
    assert [scores.scale for scores in response.scores] == [scale.name for scale in card.energy.scales]
    for index, scores in enumerate(response.scores):
        wanted = offline_energy(model, pictures, index, seed=77)
        # Of chains and of energies per image the error grows with the values.
        assert np.allclose(scores.energy, wanted, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(wanted).max())), scores.scale
    programs = [compile_score(card, scale) for scale in card.energy.scales]
    assert response.nfe == sum(program.nfe for program in programs)
    assert response.gradient_passes == sum(program.gradient_passes for program in programs)


def crowd(server: RunningServer, seed: int, others: int) -> dict[str, np.ndarray]:
    """Every case and refinement once, sent together with `others` random requests; returns the images of the former.

    Most of them must have shared forwards with others, else it would be no crowd.
    """
    rng = random.Random(seed)
    with ThreadPoolExecutor(len(REQUESTS) + others) as pool:
        futures = {name: pool.submit(send, server, name, seed=100) for name in REQUESTS}
        names = [rng.choice(REQUESTS) for _ in range(others)]
        # Three labels need a count of three.
        counts = [3 if len(CASES.get(name, {}).get("labels", ())) == 3 else rng.randint(1, 4) for name in names]
        extra = [
            pool.submit(send, server, n, seed=rng.getrandbits(60), count=c) for n, c in zip(names, counts, strict=True)
        ]
        for future in extra:
            future.result()
        responses = {name: future.result() for name, future in futures.items()}
    shared = [name for name, response in responses.items() if response.timing.mean_batch_rows > own_rows(name)]
    assert len(shared) > len(REQUESTS) / 2, shared
    assert any(name in shared for name in REFINEMENTS), shared
    return {name: images(response) for name, response in responses.items()}


def own_rows(name: str, count: int = 3) -> int:
    """Network rows of one step of a case by itself."""
    return count * (2 if CASES.get(name, {}).get("guidance") else 1)


def test_a_crowd_changes_nothing(server: RunningServer):
    """A request comes out the same to 1e-5 alone and among 34 mixed ones, refinements among them."""
    alone = {name: images(send(server, name, seed=100)) for name in REQUESTS}
    for name, got in crowd(server, seed=1, others=34 - len(REQUESTS)).items():
        assert np.abs(got - alone[name]).max() <= 1e-5 * max(1.0, float(np.abs(alone[name]).max())), name


def test_in_deterministic_mode_a_crowd_changes_not_one_bit(repository: Path):
    """In deterministic mode the bytes are the same alone and in two different crowds."""
    with running_server(repository, deterministic=True) as server:
        alone = {name: images(send(server, name, seed=100)) for name in REQUESTS}
        for seed in (1, 2):
            for name, got in crowd(server, seed=seed, others=17).items():
                assert got.tobytes() == alone[name].tobytes(), name


def test_samples_do_not_depend_on_the_count(server: RunningServer):
    """Sample i of a request is the same whether 3 or 20 samples were asked for."""
    few, many = (images(server.sample(request("ddim", seed=8, count=count))) for count in (3, 20))
    assert np.abs(few - many[:3]).max() <= 1e-5


def test_seeds_differ_and_a_drawn_seed_is_returned(server: RunningServer):
    """Two requests without a seed differ; the seed that comes back reproduces the samples."""
    message = pb.SampleRequest(model="digits-ddpm", steps=4, sampler="ddim", count=2)
    first, second = server.sample(message), server.sample(message)
    assert first.seed != second.seed
    assert np.abs(images(first) - images(second)).max() > 0.1
    message.seed = first.seed
    assert np.abs(images(server.sample(message)) - images(first)).max() <= 1e-5
