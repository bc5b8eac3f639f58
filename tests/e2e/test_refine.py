"""Refining a caller's images, and what the stream tells of a chain, through a real server."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import torch

from models.data import load_digits_split
from models.run import run
from models.samplers import SampleOptions, compile_refine, compile_sample
from protos import fewstep_pb2 as pb
from server.client import FewstepClient, FewstepError, Preview, Refined, Samples

from ..running import RunningServer
from .test_oracle import offline

MODEL = "digits-vdrme"


@pytest.fixture(scope="module")
def client(server: RunningServer):
    with FewstepClient(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return load_digits_split().test.images[:4]


def test_a_refinement_is_the_offline_chain(client: FewstepClient, pictures):
    """Images, and energies before and after, are those of the offline loop for the same seed."""
    card, networks = offline(MODEL)
    refined = client.refine(MODEL, pictures, steps=7, step_size=1e-3, temperature=0.5, seed=11)
    program = compile_refine(card, SampleOptions(steps=7, step_size=1e-3, temperature=0.5))
    wanted = run(program, card, networks, seed=11, count=4, images=torch.tensor(pictures))
    factor = card.energy.sign * card.energy.scale
    assert np.abs(refined.images - wanted.state.numpy()).max() <= 1e-4
    assert np.allclose(refined.energy_before, factor * wanted.scores[0].numpy(), rtol=1e-4, atol=1e-3)
    assert np.allclose(refined.energy_after, factor * wanted.scores[1].numpy(), rtol=1e-4, atol=1e-3)
    assert (refined.steps, refined.nfe, refined.gradient_passes, refined.method) == (7, 9, 7, "langevin")
    scored = client.score(MODEL, pictures).default.energy
    assert np.allclose(refined.energy_before, scored, rtol=1e-4, atol=1e-3)


def test_descent_brings_noisy_digits_down(client: FewstepClient, pictures):
    """At temperature 0 the energy of every noisy digit falls."""
    noisy = np.clip(pictures + 0.3 * np.random.default_rng(0).standard_normal(pictures.shape), -1, 1)
    refined = client.refine(MODEL, noisy.astype(np.float32), steps=20, step_size=2e-4, temperature=0.0)
    assert (refined.energy_after < refined.energy_before).all()


def test_metropolis_is_the_offline_chain_too(client: FewstepClient):
    """MALA served takes and refuses the same proposals as the loop."""
    card, networks = offline(MODEL)
    parameters = {"metropolis": 1, "final_step_size": 2e-4}
    samples = client.sample(MODEL, sampler="langevin", steps=15, step_size=1e-3, count=5, seed=3, parameters=parameters)
    options = SampleOptions(
        sampler="langevin",
        steps=15,
        step_size=1e-3,
        parameters=(("final_step_size", (2e-4,)), ("metropolis", (1.0,))),
    )
    wanted = run(compile_sample(card, options), card, networks, seed=3, count=5).state.numpy()
    assert np.abs(samples.images - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max())
    assert (samples.nfe, samples.gradient_passes) == (16, 16)


def test_the_stream_traces_energy_and_gradient(client: FewstepClient, pictures):
    """Each step of a chain tells the energy and the gradient's norm that it saw: those of the state before it."""
    card, networks = offline(MODEL)
    events = list(
        client.refine_stream(MODEL, pictures, steps=4, step_size=1e-3, temperature=0.0, parameters={"low": -1.5})
    )
    previews, result = events[:-1], events[-1]
    assert isinstance(result, Refined)
    assert [preview.step for preview in previews] == [1, 2, 3, 4, 5, 6]  # a score, four steps, a score
    steps = previews[1:-1]
    factor = card.energy.sign * card.energy.scale
    state = torch.tensor(pictures[:1])
    for preview in steps:
        time = torch.full((1,), card.energy.scales[0].time)
        energy, gradient = networks[card.energy.gradient_network](sample=state, time=time)
        assert preview.energy == pytest.approx(factor * float(energy), rel=1e-4, abs=1e-3)
        assert preview.gradient_norm == pytest.approx(abs(factor) * float(gradient.norm()), rel=1e-3)
        state = torch.tensor(preview.image[None])
    assert previews[0].energy is None
    assert np.array_equal(result.images[0], steps[-1].image)


def test_a_sample_stream_traces_a_chain_and_not_a_denoiser(client: FewstepClient):
    """Energies come where a step took a gradient, and only there."""
    chain = [event for event in client.sample_stream(MODEL, sampler="langevin", steps=3) if isinstance(event, Preview)]
    assert all(event.energy is not None and event.gradient_norm > 0 for event in chain)
    plain = list(client.sample_stream("digits-ddpm", steps=3))
    assert isinstance(plain[-1], Samples)
    assert all(event.energy is None and event.image is not None for event in plain[:-1])


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({"method": "melt"}, "INVALID_ARGUMENT", "method"),
        ({"parameters": {"metropolis": 2}}, "INVALID_ARGUMENT", "metropolis"),
        ({"parameters": {"colour": 1}}, "FAILED_PRECONDITION", "colour"),
        ({"parameters": {"x" * 500: 1}}, "INVALID_ARGUMENT", "parameters"),
        ({"steps": 0}, "INVALID_ARGUMENT", "steps"),
        ({"priority": 99}, "INVALID_ARGUMENT", "priority"),
    ],
)
def test_what_is_wrong_is_named(client: FewstepClient, pictures, options, code, text):
    """A refinement that cannot be has the code of the table and names the field."""
    with pytest.raises(FewstepError, match=text) as caught:
        client.refine(MODEL, pictures, **options)
    assert caught.value.code.name == code


def test_a_model_without_an_energy_refines_nothing(client: FewstepClient, pictures):
    """digits-ddpm has neither a transition nor a gradient."""
    with pytest.raises(FewstepError, match="refines no images") as caught:
        client.refine("digits-ddpm", pictures)
    assert caught.value.code == grpc.StatusCode.FAILED_PRECONDITION
    refiners = {model.name: model.refiners for model in client.models()}
    assert refiners["digits-ddpm"] == ()
    assert refiners[MODEL] == ("langevin",)


def test_a_bad_image_is_named(server: RunningServer):
    """Images of a wrong shape, or out of range, are refused before anything runs."""
    bad = pb.RefineRequest(model=MODEL, images=pb.Images(shape=[1, 1, 8, 8], raw=np.full(64, 7, "<f4").tobytes()))
    with pytest.raises(grpc.RpcError) as caught:
        server.call("Sampler", "Refine", bad, pb.RefineResponse, timeout=20)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "images.raw" in caught.value.details()
