"""The latent hierarchy's energy-based prior against closed forms (SPEC 5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels.philox import normal
from models.card import ModelCard
from models.checkpoint import load_checkpoint, load_modules
from models.data import load_digits_split
from models.metrics.frechet import FrechetDigits
from models.networks.classifier import one_thread
from models.networks.latent import (
    Energies,
    Hierarchy,
    Image,
    LayerEnergy,
    Posterior,
    PosteriorMeans,
    PriorEnergy,
    PriorImage,
)
from models.program import LangevinUpdate, start_draw
from models.run import Result, energy_gradient, networks_of, run
from models.samplers import OptionError, SampleOptions, UnsupportedError, compile_sample
from models.samplers.latent import compile_latent, latent_step, score_by_diffusion, score_by_inference
from models.train.latent_prior import (
    LATENTS,
    PriorRecipe,
    UpperEnergy,
    amplitudes,
    model_card,
    scales,
    signal_variances,
)
from models.train.latent_vae import SIZES, VaeRecipe, train_vae

from .cards import MODULE, denoiser_card

ZOO = Path(__file__).parents[2] / "models" / "zoo"
SEED = 7
NULL = 10


@pytest.fixture(autouse=True)
def on_one_thread() -> Iterator[None]:
    """At these sizes threads wait for each other longer than they compute."""
    with one_thread():
        yield


class NoEnergies(Energies):
    """F = 0."""

    def forward(self, z: list[Tensor], time: Tensor) -> list[Tensor]:
        return [0.0 * value for value in super().forward(z, time)]


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    """Small networks with random weights; energies strong enough to be seen."""
    torch.manual_seed(3)
    hierarchy, energies = Hierarchy(SIZES, 16), Energies(SIZES, width=16)
    for layer in energies.layers:
        nn.init.normal_(layer.last.weight, std=0.5)
    parts = {
        "hierarchy": hierarchy,
        "posterior": Posterior(SIZES, width=16),
        "image": Image(SIZES, width=16),
        "energies": energies,
    }
    return {name: module.double().eval().requires_grad_(False) for name, module in parts.items()}


def card(steps: int = 3) -> ModelCard:
    parts = dict.fromkeys(("hierarchy", "posterior", "image", "energies"), MODULE)
    return model_card("latent", parts, PriorRecipe(diffusion_steps=steps, langevin_steps=4), {})


def networks(modules: dict[str, nn.Module], steps: int = 3, *, energies: Energies | None = None) -> dict[str, Any]:
    hierarchy, found = modules["hierarchy"], energies or modules["energies"]
    composites = {
        "prior_energy": PriorEnergy(hierarchy, found),
        "layer_energy": LayerEnergy(hierarchy, found),
        "prior_image": PriorImage(hierarchy, modules["image"]),
        "posterior_means": PosteriorMeans(hierarchy, modules["posterior"]),
    }
    return networks_of(card(steps), composites)


def sample(
    modules: dict[str, nn.Module], count: int, steps: int = 3, energies: Energies | None = None, **options: Any
) -> Result:
    parameters = {name: options.pop(name) for name in ("langevin_steps", "hold") if name in options}
    labels = options.pop("labels", None)
    program = compile_latent(card(steps), SampleOptions(parameters=tuple(sorted(parameters.items())), **options))
    functions = networks(modules, steps, energies=energies)
    return run(program, card(steps), functions, seed=SEED, count=count, labels=labels, dtype=torch.float64)


def latents(rows: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, size, generator=generator, dtype=torch.float64) for size in SIZES]


def starts(count: int) -> list[Tensor]:
    """What the registers start from."""
    return [
        torch.from_numpy(normal([SEED] * count, range(count), [start_draw(place)] * count, size)).double()
        for place, size in enumerate(SIZES, start=1)
    ]


def moments(rule: LangevinUpdate, anchor_mean: float, anchor_variance: float, steps: int) -> tuple[float, float]:
    """Mean and variance of u after a chain from u', where U = 0 and u' ~ N(anchor_mean, anchor_variance)."""
    # u = p u' + noise: the weight of u' and the noise's variance each follow the rule's recursion.
    weight, variance = 1.0, 0.0
    for _ in range(steps):
        weight, variance = rule.state * weight + rule.anchor, rule.state**2 * variance + rule.noise**2
    return weight * anchor_mean, weight**2 * anchor_variance + variance


@pytest.mark.parametrize("alpha", [0.2, 0.6, 0.9])
def test_without_energy_a_chain_goes_to_the_forward_kernel(alpha):
    """With F = 0 the chain's law is N(alpha u', sigma^2 I), up to the step size's known excess 1/(1 - step/2)."""
    for step_size in (1e-3, 0.1):
        mean, variance = moments(latent_step(step_size, alpha, 1.0), 2.0, 0.0, steps=20_000)
        assert mean == pytest.approx(alpha * 2.0)
        assert variance == pytest.approx((1.0 - alpha**2) / (1.0 - step_size / 2.0))


def test_without_energy_the_end_is_the_prior():
    """With F = 0 and small steps, N(0, I) goes through all chains unchanged."""
    variance = 1.0
    for alpha in reversed(amplitudes(6)):
        _, variance = moments(latent_step(1e-4, alpha, 1.0), 0.0, variance, steps=100_000)
    assert variance == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("steps", [3, 6])
def test_without_energy_samples_are_the_priors(modules, steps):
    """The same of the program as it runs: with F = 0 all layers come out with the predicted variance."""
    nothing = NoEnergies(SIZES, width=16).double().requires_grad_(False)
    result = sample(modules, 300, steps, nothing, langevin_steps=(30.0,), step_size=0.2)
    expected = 1.0
    for alpha in reversed(amplitudes(steps)):
        _, expected = moments(latent_step(0.2, alpha, 1.0), 0.0, expected, steps=30)
    values = torch.cat([result.registers[name] for name in LATENTS], dim=1)
    assert 1.0 < expected < 1.12
    # 300 x 22 independent values: the variance's standard error is 1.7 %.
    assert float(values.var()) == pytest.approx(expected, rel=4 * sqrt(2.0 / values.numel()))
    assert abs(float(values.mean())) < 4 * sqrt(expected / values.numel())


def test_the_diffusion_starts_clean_and_ends_as_noise():
    """abar_0 = 1, abar_T is next to nothing, and the amplitudes of the steps multiply to it."""
    for steps in (3, 6):
        abar = signal_variances(steps)
        product = 1.0
        for alpha in amplitudes(steps):
            product *= alpha**2
        assert abar[0] == 1.0
        assert abar[-1] == pytest.approx(product)
        assert abar[-1] < 0.005


def test_the_hierarchy_is_invertible(modules):
    """T^{-1}(T(u)) = u, and z_L = u_L."""
    u = latents(5)
    z = modules["hierarchy"](u)
    assert torch.equal(z[-1], u[-1])
    for back, value in zip(modules["hierarchy"].inverse(z), u, strict=True):
        assert torch.allclose(back, value, atol=1e-10)


@pytest.mark.parametrize("label", [4, NULL])
def test_drift_is_the_gradient_of_the_log_density(modules, label):
    """One step without noise moves u by s times autograd's gradient of F - |u|^2/2 - |alpha u - u'|^2/(2 sigma^2)."""
    start = starts(3)
    program = compile_latent(card(), SampleOptions(parameters=(("langevin_steps", (1.0,)),), step_size=0.3))
    first = program.lines[0]
    alpha = amplitudes(3)[2]
    sigma2 = 1.0 - alpha**2
    u = [value.clone().requires_grad_(True) for value in start]
    z = modules["hierarchy"](u)
    logits = sum(modules["energies"](z, torch.full((3,), 2.0, dtype=torch.float64)))
    energy = torch.logsumexp(logits, 1) if label == NULL else logits[:, label]
    log_density = energy.sum()
    for value, after in zip(u, start, strict=True):
        log_density = log_density - value.square().sum() / 2 - (alpha * value - after).square().sum() / (2 * sigma2)
    drift = torch.autograd.grad(log_density, u)
    module = PriorEnergy(modules["hierarchy"], modules["energies"])
    inputs = dict(zip(LATENTS, start, strict=True))
    time, labels = torch.full((3,), 2.0, dtype=torch.float64), torch.full((3,), label)
    outputs = energy_gradient(module, LATENTS, **inputs, time=time, label=labels)
    assert first.sets_anchor
    assert first.scalars == {"time": 2.0}
    for update, value, slope in zip(first.updates, start, drift, strict=True):
        rule = update.rule
        moved = rule.state * value + rule.anchor * value + rule.gradient * outputs[update.output]
        assert torch.allclose(moved - value, 0.3 * sigma2 * slope, atol=1e-9)
        assert rule.noise == pytest.approx(sqrt(2 * 0.3 * sigma2))


def test_each_chain_starts_from_the_one_before(modules):
    """A line sets the anchor at the start of each diffusion step and nowhere else, from t = T-1 to 0."""
    program = compile_latent(card(6), SampleOptions(parameters=(("langevin_steps", (3.0,)),)))
    chain = program.lines[:-1]
    assert [line.sets_anchor for line in chain] == [True, False, False] * 6
    assert [line.scalars["time"] for line in chain[::3]] == [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    assert program.gradient_passes == 18


def test_without_steps_it_is_the_gaussian_prior(modules):
    """With K = 0 the image is the decoder's of T(u_T), u_T ~ N(0, I)."""
    result = sample(modules, 3, langevin_steps=(0.0,))
    expected = modules["image"](modules["hierarchy"](starts(3)))
    assert torch.allclose(result.state, expected, atol=1e-9)


def test_temperature_scales_the_prior(modules):
    """Without energies the latents are proportional to the temperature; at 0 all samples are one."""
    nothing = NoEnergies(SIZES, width=16).double().requires_grad_(False)
    full = sample(modules, 2, energies=nothing, langevin_steps=(5.0,))
    cool = sample(modules, 2, energies=nothing, langevin_steps=(5.0,), temperature=0.7)
    for name in LATENTS:
        assert torch.allclose(cool.registers[name], 0.7 * full.registers[name], atol=1e-9)
    cold = sample(modules, 2, temperature=0.0)
    assert torch.allclose(cold.state[0], cold.state[1], atol=1e-9)


@pytest.mark.parametrize("hold", [(3,), (2, 3), (1,)])
@pytest.mark.parametrize("langevin_steps", [0, 2])
def test_held_layers_are_the_same_for_all_samples(modules, hold, langevin_steps):
    """Held layers are equal for all samples of a request, the others and the images are not."""
    result = sample(
        modules, 3, hold=tuple(float(layer) for layer in hold), langevin_steps=(float(langevin_steps),), labels=[2] * 3
    )
    for layer, name in enumerate(LATENTS, start=1):
        values = result.registers[name]
        assert torch.equal(values[1:], values[:1].expand(2, -1)) == (layer in hold)
    assert not torch.allclose(result.state[0], result.state[1])


def test_a_label_chooses_its_logit(modules):
    """Different labels give different samples from the same noise; no label is the null label."""
    two, three = (sample(modules, 1, labels=[label]).state for label in (2, 3))
    assert not torch.allclose(two, three)
    assert torch.equal(sample(modules, 1).state, sample(modules, 1, labels=[NULL]).state)


def test_layer_energy_counts_the_layers_above(modules):
    """`above` leaves out that many layers from the bottom; what is left does not see them."""
    u = latents(4)
    module = LayerEnergy(modules["hierarchy"], modules["energies"])
    values = modules["energies"](modules["hierarchy"](u), torch.zeros(4, dtype=torch.float64))
    for above in range(3):
        rows = torch.full((4,), float(above), dtype=torch.float64)
        expected = -torch.logsumexp(sum(values[above:]), dim=1)
        energy, *gradients = energy_gradient(module, LATENTS, **dict(zip(LATENTS, u, strict=True)), above=rows)
        assert torch.allclose(energy, expected)
        assert [bool(gradient.any()) for gradient in gradients] == [layer > above for layer in (1, 2, 3)]


@pytest.mark.parametrize("label", [4, NULL])
def test_upper_rows_train_the_energy_that_their_layers_are_scored_with(modules, label):
    """Where no layer is left out it is the prior's energy; else that of the score, blind to what is left out."""
    u, hierarchy, energies = latents(3), modules["hierarchy"], modules["energies"]
    upper, zero, labels = UpperEnergy(hierarchy, energies), torch.zeros(3).double(), torch.full((3,), label)
    inputs = dict(zip(LATENTS, u, strict=True))
    prior = PriorEnergy(hierarchy, energies)(**inputs, time=zero, label=labels)
    above = torch.arange(3).double()
    energy, *gradients = energy_gradient(upper, LATENTS, **inputs, time=zero, label=labels, above=above)
    assert torch.allclose(energy[0], prior[0])
    if label == NULL:
        assert torch.allclose(energy, LayerEnergy(hierarchy, energies)(**inputs, above=above))
    for layer, gradient in enumerate(gradients, start=1):
        assert [bool(row.any()) for row in gradient] == [layer > left_out for left_out in range(3)]


def test_some_nats_of_the_lower_layers_are_free():
    """A layer that the bound alone would leave unused holds about the nats that cost nothing; the top does its work."""
    data = load_digits_split().train
    recipe = VaeRecipe(steps=120, width=32, hierarchy_width=16)
    used = train_vae(data, recipe, lambda *_: None).losses
    bound = train_vae(data, replace(recipe, free_nats=(0.0, 0.0, 0.0)), lambda *_: None).losses
    assert used["kl1"] > bound["kl1"] + 0.5
    assert used["kl1"] < 6.0
    assert used["kl3"] > 1.0


def test_the_marginal_is_that_of_the_labels(modules):
    """For the null label exp(-U) is the sum over the labels, and at t = 0 U is the energy of all layers."""
    u, module = latents(4), PriorEnergy(modules["hierarchy"], modules["energies"])
    inputs, zero = dict(zip(LATENTS, u, strict=True)), torch.zeros(4, dtype=torch.float64)
    each = torch.stack([module(**inputs, time=zero, label=torch.full((4,), label)) for label in range(10)])
    marginal = module(**inputs, time=zero, label=torch.full((4,), NULL))
    assert torch.allclose(marginal, -torch.logsumexp(-each, dim=0))
    assert torch.allclose(marginal, LayerEnergy(modules["hierarchy"], modules["energies"])(**inputs, above=zero))


def test_inference_scores_what_the_encoder_infers(modules):
    """The score by inference is the energy of the posterior's means, and leaves the image alone."""
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64) * 2.0 - 1.0
    found = PosteriorMeans(modules["hierarchy"], modules["posterior"])(images)
    module = LayerEnergy(modules["hierarchy"], modules["energies"])
    for above, scale in enumerate(scales()[:3]):
        program = score_by_inference(card(), scale)
        result = run(program, card(), networks(modules), seed=1, count=3, images=images, dtype=torch.float64)
        rows = torch.full((3,), float(above), dtype=torch.float64)
        assert torch.allclose(result.energy, module(*found, above=rows))
        assert torch.equal(result.state, images)


@pytest.mark.parametrize("above", [0, 2])
def test_diffusion_scores_after_a_step_and_back(modules, above):
    """Each repeat noises the inferred upper layers to t = 1 with noise of its own and runs the chain of t = 0."""
    scale = scales(repeats=2)[3 + above]
    program = score_by_diffusion(card(), scale)
    assert sum(not line.updates for line in program.lines) == 2
    draws = [update.noise for line in program.lines for update in line.updates if update.noise is not None]
    assert len(draws) == len(set(draws))
    images = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    result = run(program, card(), networks(modules), seed=1, count=1, images=images, dtype=torch.float64)
    assert not torch.allclose(result.scores[0], result.scores[1])
    chain = [line for line in program.lines if line.network == "prior_gradient"]
    assert len(chain) == 2 * (4 if above == 0 else 3 * 4 + 1)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"parameters": (("hold", (4.0,)),)}, "hold"),
        ({"parameters": (("hold", (1.0, 1.0)),)}, "hold"),
        ({"parameters": (("hold", (1.0, 2.0, 3.0)),)}, "hold"),
        ({"parameters": (("hold", (1.5,)),)}, "hold"),
        ({"parameters": (("langevin_steps", (-1.0,)),)}, "langevin_steps"),
        ({"step_size": 2.0}, "step_size"),
        ({"temperature": -1.0}, "temperature"),
        ({"steps": 4}, "steps"),
    ],
)
def test_wrong_options_are_named(options, field):
    """An option out of range is refused by name."""
    with pytest.raises(OptionError) as error:
        compile_latent(card(), SampleOptions(**options))
    assert error.value.field == field


def test_without_steps_there_is_no_step_size():
    """The plain Gaussian prior refuses what it has no use for."""
    options = SampleOptions(step_size=0.1, parameters=(("langevin_steps", (0.0,)),))
    with pytest.raises(UnsupportedError, match="step_size"):
        compile_latent(card(), options)


def test_another_models_card_is_refused():
    """A model without such a prior is told so."""
    with pytest.raises(UnsupportedError):
        compile_latent(denoiser_card(), SampleOptions())


@pytest.mark.parametrize("name", ["digits-latent", "digits-latent-6"])
def test_the_shipped_prior_beats_the_gaussian_one(name):
    """Samples of the shipped prior have at most half of the Gaussian prior's FD-digits, from the same decoder."""
    shipped = load_checkpoint(ZOO / name)
    functions = networks_of(shipped, load_modules(ZOO / name, shipped.modules))
    judge = FrechetDigits.load()
    found = []
    for parameters in ((), (("langevin_steps", (0.0,)),)):
        program = compile_sample(shipped, SampleOptions(parameters=parameters))
        found.append(judge.distance(run(program, shipped, functions, seed=2, count=600).state.numpy()))
    assert found[0] <= 0.5 * found[1]
