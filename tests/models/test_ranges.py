"""What callers get is an image: it lies in its model's range, so that it can be scored and refined as any other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kernels.cpu import ensemble_step
from models.card import ImageSpec
from models.checkpoint import load_modules
from models.networks.classifier import one_thread
from models.run import networks_of, run
from models.samplers import SampleOptions, compile_refine, compile_sample

from ..conftest import ZOO
from .cards import denoiser_card, vdrme_card
from .zoo import CARDS, REFINED, SAMPLED


@pytest.fixture(autouse=True)
def on_one_thread() -> Iterator[None]:
    """At these sizes threads wait for each other longer than they compute."""
    with one_thread():
        yield


@pytest.mark.parametrize("low_high", [(-1.0, 1.0), (-0.7, 0.7)])
@pytest.mark.parametrize(
    ("sampler", "clip"),
    [
        *((name, True) for name in ("ddim", "iddim", "radical", "accumulator", "custom", "ancestral", "vdrme")),
        *((name, False) for name in ("ddim", "accumulator", "ancestral", "vdrme")),
    ],
)
def test_served_samples_lie_in_the_range_of_images_to_the_last_bit(sampler, clip, low_high):
    """Where all predictions are at the edge of the range, the float32 kernel's last state is not beyond it.

    Nor is it where a model clips no prediction but the last.
    """
    low, high = low_high
    image = ImageSpec(channels=1, height=8, width=8, low=low, high=high)
    make = vdrme_card if sampler == "vdrme" else denoiser_card
    card = make(image=image, clip=clip)
    random = np.random.default_rng(1)
    for steps in (4,) if sampler == "vdrme" else range(1, 12):
        options = SampleOptions(sampler=sampler, steps=steps)
        if sampler == "accumulator":
            options = SampleOptions(sampler="iddim", steps=steps, form="accumulator", m=(float(random.random()),))
        if sampler == "custom":
            weights = tuple(tuple(random.random(i + 1).tolist()) for i in range(steps))
            options = SampleOptions(sampler="custom", steps=steps, weights=weights)
        update = compile_sample(card, options).lines[-1].updates[0]
        for edge in (np.float32(low), np.float32(high)):
            history = sum((np.float32(weight) * edge for weight in update.history), start=np.float32(0.0))
            output = edge * np.sign(update.coefficients[2]) * np.float32(1e6)
            (state,), _ = ensemble_step(
                np.full((1, 1), edge), np.array([0]), output.reshape(1, 1), update.coefficients[None],
                anchor=np.zeros((1, 1), np.float32), accumulator=np.full((1, 1), edge),
                history=history.reshape(1, 1).astype(np.float32),
            )  # fmt: skip
            assert np.float32(low) <= state[0] <= np.float32(high)
            assert state[0] == pytest.approx(edge, rel=1e-5)


@pytest.mark.parametrize(("name", "sampler"), [pair for pair in SAMPLED if pair[1] != "custom"])
def test_samples_of_every_shipped_model_are_images(name, sampler):
    """By every sampler, from noise that is four times as wide as it should be where it can be."""
    card = CARDS[name]
    temperature = 4.0 if sampler in ("langevin", "vdrme", "ddim") else None
    program = compile_sample(card, SampleOptions(sampler=sampler, temperature=temperature))
    check_range(name, run(program, card, networks(name), seed=3, count=8).state)


@pytest.mark.parametrize(("name", "method"), REFINED)
def test_refined_images_of_every_shipped_model_are_images(name, method):
    """By every method, from noise, which is no image that the model knows."""
    card = CARDS[name]
    noise = torch.rand(8, *card.image.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    program = compile_refine(card, SampleOptions(sampler=method, steps=3))
    check_range(name, run(program, card, networks(name), seed=3, count=8, images=noise).state)


def networks(name: str):
    return networks_of(CARDS[name], load_modules(ZOO / name, CARDS[name].modules))


def check_range(name: str, state: torch.Tensor) -> None:
    assert torch.isfinite(state).all()
    assert CARDS[name].image.low <= float(state.min()) <= float(state.max()) <= CARDS[name].image.high
