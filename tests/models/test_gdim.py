"""t-GDIM and T-GDIM: objectives by hand, the sampler's closed form, and energies that average over seeded draws."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log, sqrt

import numpy as np
import pytest
import torch
from torch import nn

from kernels.philox import normal
from models.card import ModuleSpec
from models.data import NULL_LABEL, LabelledImages
from models.networks import build
from models.networks.classifier import one_thread
from models.program import latent_draw, start_draw
from models.run import run
from models.samplers import OptionError, SampleOptions, UnsupportedError, compile_sample, compile_score
from models.schedules import alpha_bar, quadratic_grid
from models.train import ddpm
from models.train.gdim.card import ENERGY_CONFIG, GENERATOR_CONFIG, LATENT, model_card
from models.train.gdim.trainer import (
    Batch,
    Recipe,
    Steps,
    Trainer,
    energy_loss,
    generator_loss,
    initialise_generator,
    path,
)

ABAR = alpha_bar(ddpm.SCHEDULE)
TIMES = (1000, 563, 250, 63)
MODULE = ModuleSpec(architecture="none", config={}, weights="none.safetensors", sha256="0" * 64, parameters=0)
T_CARD, START_CARD = (
    model_card({"generator": MODULE, "energy": MODULE}, {}, sees_start=sees_start) for sees_start in (False, True)
)


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    """Small networks on busy cores: threads would wait for each other longer than they work."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def generator() -> nn.Module:
    torch.manual_seed(0)
    return build("gdim-generator", GENERATOR_CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def energy() -> nn.Module:
    """An energy with a head that is not zero, as it is before training."""
    torch.manual_seed(0)
    network = build("gdim-energy", ENERGY_CONFIG).eval().requires_grad_(False)
    nn.init.normal_(network.head.weight)
    return network


def inputs(rows: int, seed: int = 1) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(rows, 1, 8, 8, generator=random),
        "time": torch.tensor([TIMES[row % 4] - 1.0 for row in range(rows)]),
        "label": torch.arange(rows) % (NULL_LABEL + 1),
        "latent": torch.randn(rows, LATENT, generator=random),
    }


def amplitudes(t: int, rows: int, prefix: str = "") -> dict[str, torch.Tensor]:
    return {
        f"{prefix}signal": torch.full((rows,), sqrt(ABAR[t])),
        f"{prefix}noise": torch.full((rows,), sqrt(1.0 - ABAR[t])),
    }


def trainer(*, sees_start: bool, **recipe: float) -> Trainer:
    random = np.random.default_rng(0)
    images = random.uniform(-1.0, 1.0, (40, 1, 8, 8)).astype(np.float32)
    data = LabelledImages(images, random.integers(0, 10, 40))
    torch.manual_seed(0)
    denoiser = build(ddpm.ARCHITECTURE, ddpm.CONFIG)
    return Trainer(data, denoiser, replace(Recipe(batch=8, population=16, rollouts=4), **recipe), sees_start=sees_start)


def test_the_objectives_are_those_of_equations_52_to_56():
    """With -E = sigmoid(h): log(-E_real) + log(1 + E_fake) for the energy, log(-E_fake) for the generator."""
    real, fake = (1.5, -0.25), (0.5, -2.0)

    def sigmoid(value: float) -> float:
        return 1.0 / (1.0 + exp(-value))

    maximised = sum(log(sigmoid(r)) + log(1.0 - sigmoid(f)) for r, f in zip(real, fake, strict=True)) / 2.0
    assert float(energy_loss(torch.tensor(real), torch.tensor(fake))) == pytest.approx(-maximised, rel=1e-6)
    expected = -sum(log(sigmoid(f)) for f in fake) / 2.0
    assert float(generator_loss(torch.tensor(fake))) == pytest.approx(expected, rel=1e-6)


def test_the_steps_are_the_quadratic_grid_and_end_clean():
    """tau = 1000, 563, 250, 63 with network times one less, and abar = 1 after the last step."""
    steps = Steps.of_grid(4)
    assert quadratic_grid(4, 1000) == TIMES[::-1]
    assert steps.time.tolist() == [999.0, 562.0, 249.0, 62.0]
    assert steps.abar_t.tolist() == [ABAR[t] for t in TIMES]
    assert steps.abar_s.tolist() == [*(ABAR[t] for t in TIMES[1:]), 1.0]


def test_the_path_leads_from_the_image_to_its_start():
    """T(x_0; x_T, 0) = x_0, T(x_0; x_T, T) = x_T, and in between eq. 8."""
    clean, start = (torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    abar_T = float(ABAR[1000])

    def at(abar: float) -> torch.Tensor:
        return path(clean, start, torch.full((3,), abar, dtype=torch.float64), abar_T)

    torch.testing.assert_close(at(1.0), clean)
    torch.testing.assert_close(at(abar_T), start)
    middle = sqrt(0.3) * clean + sqrt(0.7) * (start - sqrt(abar_T) * clean) / sqrt(1.0 - abar_T)
    torch.testing.assert_close(at(0.3), middle)


@pytest.mark.parametrize("m", [1.0, 0.3])
def test_a_generator_of_one_image_is_followed_along_its_path(m):
    """With p = c whatever comes in, m drops out and each state is T(c; x_T, s): the ensemble of equal predictions."""
    constant = 0.4

    def network(sample: torch.Tensor, time: torch.Tensor, **_: torch.Tensor) -> tuple[torch.Tensor]:
        abar = torch.tensor(ABAR)[(time + 1).long()].view(-1, 1, 1, 1)
        return ((abar.sqrt() * sample - constant) / (1.0 - abar).sqrt(),)  # v, for p = c

    program = compile_sample(T_CARD, SampleOptions(m=(m,)))
    result = run(program, T_CARD, {"generator": network}, seed=5, count=2, keep_trace=True, dtype=torch.float64)
    start = torch.tensor(normal([5, 5], [0, 1], [start_draw()] * 2, 64)).double().reshape(2, 1, 8, 8)
    for state, s in zip(result.trace, (563, 250, 63, 0), strict=True):
        rest = (start - sqrt(ABAR[1000]) * constant) / sqrt(1.0 - ABAR[1000])
        torch.testing.assert_close(state, sqrt(ABAR[s]) * constant + sqrt(1.0 - ABAR[s]) * rest)


def test_m_is_one_by_default_and_every_step_draws_a_latent():
    """t-GDIM's own step keeps nothing of x_t (eq. 13); latents are fresh, and four steps are four evaluations."""
    program = compile_sample(T_CARD, SampleOptions())
    rules = [line.updates[0].rule for line in program.lines]
    assert program == compile_sample(T_CARD, SampleOptions(m=(1.0,)))
    assert [rule.state for rule in rules] == [0.0] * 4
    assert all(rule.anchor > 0.0 for rule in rules[:-1])
    assert rules[-1].anchor == 0.0
    assert [line.latent for line in program.lines] == [latent_draw(i) for i in range(4)]
    assert program.nfe == 4
    assert compile_sample(T_CARD, SampleOptions(m=(0.5,))).lines[1].updates[0].rule.state > 0.0


def test_what_the_model_was_not_trained_for_is_refused():
    """Another number of steps, another spacing or guidance is no option of this sampler."""
    with pytest.raises(OptionError, match="steps"):
        compile_sample(T_CARD, SampleOptions(steps=8))
    with pytest.raises(UnsupportedError, match="spacing"):
        compile_sample(T_CARD, SampleOptions(spacing="linear"))
    with pytest.raises(UnsupportedError, match="guidance"):
        compile_sample(T_CARD, SampleOptions(guidance=1.0))


def test_the_generator_s_rows_are_independent(generator):
    """A row comes out the same, to rounding, alone and among others."""
    rows = inputs(6)
    together = generator(**rows)
    for row in range(6):
        alone = generator(**{name: value[row : row + 1] for name, value in rows.items()})
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


def test_the_latent_moves_the_prediction(generator):
    """Two latents that choose the same label give different images, and no longer than that with zero styles."""
    rows = inputs(4) | {"label": torch.arange(4)}
    other = rows | {"latent": inputs(4, seed=2)["latent"]}
    assert (generator(**rows) - generator(**other)).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    silent = build("gdim-generator", GENERATOR_CONFIG).eval()
    silent.load_state_dict({key: value * ("style" not in key) for key, value in generator.state_dict().items()})
    torch.testing.assert_close(silent(**rows), silent(**other))


def test_without_styles_the_generator_is_the_denoiser_that_it_started_from():
    """The U-Net with adaptive norms is diffusers' own forward where scale and shift are zero."""
    torch.manual_seed(0)
    denoiser = build(ddpm.ARCHITECTURE, ddpm.CONFIG).eval()
    network = build("gdim-generator", GENERATOR_CONFIG).eval()
    initialise_generator(network, denoiser)
    network.load_state_dict({key: value * ("style" not in key) for key, value in network.state_dict().items()})
    rows = inputs(4) | {"label": torch.arange(4)}
    expected = denoiser(**{name: rows[name] for name in ("sample", "time", "label")})
    torch.testing.assert_close(network(**rows), expected, atol=1e-5, rtol=1e-5)


def test_unlabelled_rows_draw_their_label_from_the_posterior(generator):
    """The chosen labels have the frequencies softmax(logits); a given label is kept."""
    count = 10_000
    rows = {name: value[:1].expand(count, *value.shape[1:]) for name, value in inputs(1).items()}
    latent = torch.randn(count, LATENT, generator=torch.Generator().manual_seed(3))
    null = torch.full((count,), NULL_LABEL)
    chosen = generator.choose(rows["sample"], rows["time"], null, latent)
    wanted = torch.softmax(generator.posterior(rows["sample"][:1], rows["time"][:1])[0], dim=0)
    observed = torch.bincount(chosen, minlength=10) / count
    assert (observed - wanted).abs().max() < 5.0 * 0.5 / sqrt(count)
    given = torch.arange(count) % 10
    assert torch.equal(generator.choose(rows["sample"], rows["time"], given, latent), given)


def test_the_energy_is_minus_the_log_ratio_of_the_pair_that_it_builds(energy):
    """forward(x, e) is -h at x_t = sqrt(abar) x + sqrt(1 - abar) e, beside x itself or x_s."""
    rows, t, s = 4, 563, 250
    clean, noise = (torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    time, null = torch.full((rows,), t - 1.0), torch.full((rows,), NULL_LABEL)
    state = sqrt(ABAR[t]) * clean + sqrt(1.0 - ABAR[t]) * noise
    here = amplitudes(t, rows)
    beside = {"target_signal": torch.ones(rows), "target_noise": torch.zeros(rows)}
    found = energy(sample=clean, latent=noise, time=time, **here)
    torch.testing.assert_close(found, -energy.log_ratio(clean, state, time, null, **here, **beside))
    target = sqrt(ABAR[s]) * clean + sqrt(1.0 - ABAR[s]) * noise
    there = amplitudes(s, rows, "target_")
    found = energy(sample=clean, latent=noise, time=time, **here, **there)
    torch.testing.assert_close(found, -energy.log_ratio(target, state, time, null, **here, **there))


def test_the_energy_s_rows_are_independent_and_its_noise_matters(energy):
    """No statistic of the batch enters (the paper's minibatch-std layer is left out); another x_t, another energy."""
    rows = inputs(5)
    noise = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    given = {"sample": rows["sample"], "latent": noise, "time": rows["time"], **amplitudes(250, 5)}
    together = energy(**given)
    for row in range(5):
        alone = energy(**{name: value[row : row + 1] for name, value in given.items()})
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=1e-4)
    assert (energy(**given | {"latent": noise.flip(0)}) - together).abs()[:2].min() > 1e-4


@pytest.mark.parametrize("card", [T_CARD, START_CARD], ids=["t-GDIM", "T-GDIM"])
def test_a_score_is_the_mean_over_draws_keyed_by_the_seed(card):
    """The default scale takes two draws at each of the four times, all different, and repeats with its seed."""
    seen: list[tuple[float, torch.Tensor]] = []

    def network(sample: torch.Tensor, latent: torch.Tensor, time: torch.Tensor, **scalars) -> tuple[torch.Tensor]:
        expected = {"signal", "noise"} | ({"target_signal", "target_noise"} if card is START_CARD else set())
        assert set(scalars) == expected
        torch.testing.assert_close(scalars["signal"] ** 2 + scalars["noise"] ** 2, torch.ones_like(time))
        seen.append((float(time[0]) + 1, latent))
        return (latent.sum(dim=(1, 2, 3)) * scalars["noise"] + sample.sum(dim=(1, 2, 3)),)

    images = torch.rand(3, 1, 8, 8)
    program = compile_score(card, card.energy.scales[0])

    def score(seed: int) -> torch.Tensor:
        seen.clear()
        return run(program, card, {"energy": network}, seed=seed, count=3, images=images).energy

    energy = score(7)
    assert sorted(t for t, _ in seen) == sorted(TIMES * 2)
    sums = torch.stack([latent.sum(dim=(1, 2, 3)) * sqrt(1.0 - ABAR[int(t)]) for t, latent in seen])
    torch.testing.assert_close(energy, sums.mean(dim=0) + images.sum(dim=(1, 2, 3)), atol=1e-4, rtol=1e-5)
    assert len({float(latent.sum()) for _, latent in seen}) == 8
    assert torch.equal(energy, score(7))
    assert not torch.equal(energy, score(8))


def test_a_scale_of_one_time_scores_there_alone():
    """`t249` means four draws of x_250, and T-GDIM pairs them with x_63."""
    scale = next(scale for scale in START_CARD.energy.scales if scale.name == "t249")
    lines = compile_score(START_CARD, scale).lines
    assert [line.scalars["time"] for line in lines] == [249.0] * 4
    assert len({line.latent for line in lines}) == 4
    for line in lines:
        assert line.scalars["signal"] == pytest.approx(sqrt(ABAR[250]))
        assert line.scalars["target_signal"] == pytest.approx(sqrt(ABAR[63]))


@pytest.mark.parametrize("sees_start", [False, True])
def test_generated_pairs_lie_on_a_path_with_the_start_of_their_state(sees_start, monkeypatch):
    """T-GDIM's fake x_s is T(G(x_t); x_T, s) with the x_T that made x_t; t-GDIM's is G(x_t) itself."""
    state = trainer(sees_start=sees_start, rollouts=0)
    batches: list[tuple[Batch, torch.Tensor]] = []
    generate = state._generate

    def kept_generate(batch, *, with_gradient):
        found = generate(batch, with_gradient=with_gradient)
        batches.append((batch, found[1].detach()))
        return found

    monkeypatch.setattr(state, "_generate", kept_generate)
    fakes: list[torch.Tensor] = []
    update = state._update_energy

    def kept_update(iteration, data, batch, fake):
        fakes.append(fake)
        return update(iteration, data, batch, fake)

    monkeypatch.setattr(state, "_update_energy", kept_update)
    state.iterate(0, train_generator=False)
    (batch, clean), (fake,) = batches[0], fakes
    abar_t, abar_s = (
        values[batch.step].float().view(-1, 1, 1, 1) for values in (state.steps.abar_t, state.steps.abar_s)
    )
    noise = (batch.start - sqrt(ABAR[1000]) * batch.clean) / sqrt(1.0 - ABAR[1000])
    torch.testing.assert_close(batch.state, abar_t.sqrt() * batch.clean + (1.0 - abar_t).sqrt() * noise)
    if sees_start:
        rest = (batch.start - sqrt(ABAR[1000]) * clean) / sqrt(1.0 - ABAR[1000])
        torch.testing.assert_close(fake, abar_s.sqrt() * clean + (1.0 - abar_s).sqrt() * rest)
    else:
        torch.testing.assert_close(fake, clean)


def test_chains_of_the_population_walk_the_grid_and_start_anew():
    """A member goes to T(p; x_T, s) and the next step, keeps x_T, and gets a new one after the last step."""
    state = trainer(sees_start=False)
    people = state.population
    people.step[:4] = torch.tensor([0, 1, 2, 3])
    start = people.start[:4].clone()
    clean = torch.full((4, 1, 8, 8), 0.5)
    state._advance(torch.arange(4), clean)
    assert people.step[:4].tolist() == [1, 2, 3, 0]
    torch.testing.assert_close(people.state[:3], path(clean[:3], start[:3], state.steps.abar_s[:3], state.steps.abar_T))
    assert torch.equal(people.start[:3], start[:3])
    assert not torch.equal(people.start[3], start[3])
    assert torch.equal(people.state[3], people.start[3])


def test_training_moves_what_it_says():
    """An iteration changes all three networks, or all but the generator's U-Net while the energy warms up."""
    state = trainer(sees_start=True)

    def weights(network: nn.Module) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])

    posterior = state.generator.posterior
    unet, known, energy = weights(state.generator.unet), weights(posterior), weights(state.energy)
    state.iterate(0, train_generator=False)
    assert torch.equal(weights(state.generator.unet), unet)
    assert not torch.equal(weights(posterior), known)
    assert not torch.equal(weights(state.energy), energy)
    losses = state.iterate(1, train_generator=True)
    assert not torch.equal(weights(state.generator.unet), unet)
    assert all(np.isfinite(value) for value in losses.values())
