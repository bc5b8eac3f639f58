"""Hat Diffusion EBM against closed forms: linear networks, quadratic energies (SPEC 4)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels.philox import normal
from models.card import ModelCard
from models.checkpoint import load_checkpoint, load_modules
from models.metrics.frechet import FrechetDigits
from models.networks.hat import SCHEDULE, Composition, Denoiser, HatGenerator, JointEnergy, Transition
from models.program import Program, latent_draw, start_draw
from models.run import Result, energy_gradient, networks_of, run
from models.samplers import OptionError, SampleOptions, UnsupportedError, compile_sample
from models.samplers.hat import OPTIONS as HAT_OPTIONS
from models.samplers.hat import compile_hat, latent_step, refine_by_transition
from models.samplers.langevin import OPTIONS as LANGEVIN_OPTIONS
from models.schedules import alpha_bar
from models.train.__main__ import ZOO
from models.train.hat.card import model_card
from models.train.hat.diffusion import TABLE, amplitudes, ddim_step, distillation_target, even_grid
from models.train.hat.energy import Bank, Chain, generator_loss, residual_chain

from .cards import MODULE

LATENT = 3
SEED = 11


class LinearProposal(nn.Module):
    """G_1(z_1) = A z_1."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.linspace(-1.0, 1.0, 64 * LATENT, dtype=torch.float64).sin().reshape(64, LATENT)

    def forward(self, z1: Tensor) -> Tensor:
        return (z1 @ self.matrix.T).reshape(-1, 1, 8, 8)


class LinearDenoiser(Denoiser):
    """D(x) = B x, with the real schedule and transition."""

    def __init__(self) -> None:
        super().__init__(width=8, blocks=1)
        self.matrix = torch.linspace(0.0, 9.0, 64 * 64, dtype=torch.float64).cos().reshape(64, 64) / 16.0

    def forward(self, sample: Tensor) -> Tensor:
        return (sample.flatten(1) @ self.matrix.T).reshape_as(sample)


class QuadraticEnergy(nn.Module):
    """H(x) = w |x - c|^2 / 2 with c = 0.1 in every pixel."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, sample: Tensor) -> Tensor:
        return self.weight * (sample - 0.1).square().flatten(1).sum(1) / 2


PROPOSAL, DENOISER, ENERGY = LinearProposal(), LinearDenoiser(), QuadraticEnergy()
FIRST = Chain(steps=4, epsilon=(2 * 0.1) ** 0.5, temperature=1.0, max_displacement=1e6)
SECOND = Chain(steps=4, epsilon=(2 * 0.1) ** 0.5, temperature=0.0, latent_epsilon=0.2, max_displacement=1e6)


def linear_card() -> ModelCard:
    """Defaults: s = 0.1 for y and 0.02 for z, and temperature 0 in stage 2."""
    modules = dict.fromkeys(("proposal", "denoiser", "energy", "residual_energy"), MODULE)
    return model_card(modules, {}, latent=LATENT, first=FIRST, second=SECOND)


def hat(stage: int, steps: int | None = None, energy: nn.Module = ENERGY, count: int = 2, **options: Any) -> Result:
    card = linear_card()
    parameters = {"stage": (float(stage),), **options.pop("parameters", {})}
    program = compile_hat(card, SampleOptions(steps=steps, parameters=tuple(sorted(parameters.items())), **options))
    return executed(program, card, energy, count=count)


def executed(program: Program, card: ModelCard, energy: nn.Module = ENERGY, **inputs: Any) -> Result:
    modules = {
        "energy": energy,
        "residual_energy": energy,
        "generator": HatGenerator(PROPOSAL, DENOISER),
        "joint_energy": JointEnergy(energy, PROPOSAL, DENOISER),
        "composition": Composition(PROPOSAL, DENOISER),
        "transition": Transition(DENOISER),
    }
    count = inputs.pop("count", 2)
    return run(program, card, networks_of(card, modules), seed=SEED, count=count, dtype=torch.float64, **inputs)


def noise(draw: int, *shape: int, count: int = 2) -> Tensor:
    size = int(torch.Size(shape).numel())
    values = normal([SEED] * count, range(count), [draw] * count, size)
    return torch.from_numpy(values.copy()).double().reshape(count, *shape)


def latents(count: int = 2) -> tuple[Tensor, Tensor]:
    """z_1 and z_2 as a program starts them: registers 2 and 3 of the card, after y."""
    return noise(start_draw(2), LATENT, count=count), noise(start_draw(3), 1, 8, 8, count=count)


def generated(z1: Tensor, z2: Tensor) -> Tensor:
    proposed = DENOISER.alpha * z1 @ PROPOSAL.matrix.T + DENOISER.sigma * z2.flatten(1)
    return (proposed @ DENOISER.matrix.T).reshape(-1, 1, 8, 8)


def test_truncation_at_512_has_the_amplitudes_of_the_cosine_schedule():
    """SPEC 0's checked numbers: amplitude .68931 and noise .72446 at t = 512."""
    assert (DENOISER.alpha, DENOISER.sigma) == pytest.approx((0.68931, 0.72446), abs=5e-6)


def test_stage_0_is_one_evaluation_of_the_generator():
    """G(z) = D(alpha A z_1 + sigma z_2) with z from N(0, I), clipped to the range of images."""
    result = hat(0)
    assert torch.allclose(result.state, generated(*latents()).clamp(-1.0, 1.0), rtol=1e-12)


def test_gradients_are_those_of_the_chain_rule():
    """grad z_1 = alpha A^T B^T grad H, grad z_2 = sigma B^T grad H, grad y = grad H."""
    (z1, z2), y = latents(), noise(77, 1, 8, 8)
    joint = JointEnergy(ENERGY, PROPOSAL, DENOISER)
    energy, *gradients, image = energy_gradient(joint, ("y", "z1", "z2"), y=y, z1=z1, z2=z2)
    assert torch.allclose(image, generated(z1, z2) + y, rtol=1e-12)
    assert torch.allclose(energy, ENERGY(image), rtol=1e-12)
    slope = (image - 0.1).flatten(1)
    back = slope @ DENOISER.matrix
    expected = slope, DENOISER.alpha * back @ PROPOSAL.matrix, DENOISER.sigma * back
    for found, wanted in zip(gradients, expected, strict=True):
        assert torch.allclose(found.flatten(1), wanted, rtol=1e-9, atol=1e-12)


def test_stage_1_descends_from_the_generated_image():
    """At temperature 0 with H = |x - c|^2/2, X_n = c + (1 - s)^n (G(z) - c)."""
    expected = 0.1 + 0.9**4 * (generated(*latents()) - 0.1)
    assert expected.abs().max() < 1.0  # inside the box, which the closed form does not know
    result = hat(1, steps=4, step_size=0.1, temperature=0.0)
    assert torch.allclose(result.state, expected, rtol=1e-9)


def test_stage_1_has_the_stationary_mean_and_variance_of_its_target():
    """X of exp(-w |x - c|^2 / (2 tau)) is Gaussian: mean c, variance (tau/w)/(1 - s w/(2 tau))."""
    s, tau, w = 0.005, 0.1, 10.0
    values = hat(1, steps=15, energy=QuadraticEnergy(w), count=64, step_size=s, temperature=tau).state.flatten()
    variance = tau / w / (1 - s * w / (2 * tau))
    assert float(values.var()) == pytest.approx(variance, rel=5 * (2 / len(values)) ** 0.5)
    assert float(values.mean()) == pytest.approx(0.1, abs=5 * (variance / len(values)) ** 0.5)


def test_stage_2_alternates_latents_and_residual():
    """At temperature 0 a step moves z by the chain rule's gradient, then y by the gradient at the z so found."""
    z1, z2 = latents()
    y = torch.zeros_like(z2)
    for _ in range(3):
        back = (generated(z1, z2) + y - 0.1).flatten(1) @ DENOISER.matrix
        z1 = z1 - 0.02 * DENOISER.alpha * back @ PROPOSAL.matrix
        z2 = z2 - 0.02 * DENOISER.sigma * back.reshape_as(z2)
        y = y - 0.1 * (generated(z1, z2) + y - 0.1)
    result = hat(2, steps=3)
    for name, expected in (("z1", z1), ("z2", z2), ("y", y)):
        assert torch.allclose(result.registers[name], expected, rtol=1e-9, atol=1e-12), name
    assert torch.allclose(result.state, (generated(z1, z2) + y).clamp(-1.0, 1.0), rtol=1e-9)


def test_the_prior_keeps_latents_at_unit_variance():
    """Without an energy z <- (1 - s) z + sqrt(2 s) n has variance 1/(1 - s/2); without the prior it spreads."""
    s, steps = 0.6, 6
    options = {"temperature": 1.0, "step_size": 1e-6, "energy": QuadraticEnergy(0.0)}
    for prior, expected in ((1.0, 1 / (1 - s / 2)), (0.0, 1 + 2 * s * steps)):
        result = hat(2, steps, count=64, **options, parameters={"latent_step_size": (s,), "prior": (prior,)})
        values = result.registers["z2"].flatten()
        assert float(values.var()) == pytest.approx(expected, rel=5 * (2 / len(values)) ** 0.5)


def test_the_prior_is_not_tempered():
    """The drift towards 0 is s whatever the temperature, and there is none where there is no noise to balance it."""
    assert latent_step(0.02, 1e-3, 1.0, prior=True).state == 0.98
    assert latent_step(0.02, 0.0, 1.0, prior=True).state == 1.0


def test_displacement_is_clipped_in_both_stages():
    """No gradient step on the residual is longer than the limit."""
    limit = 0.01
    for stage in (1, 2):
        result = hat(stage, 1, step_size=0.5, temperature=0.0, parameters={"max_displacement": (limit,)})
        moved = result.state - generated(*latents()) if stage == 1 else result.registers["y"]
        assert torch.allclose(moved.flatten(1).norm(dim=1), torch.full((2,), limit, dtype=torch.float64), rtol=1e-6)


def test_previews_are_the_images_that_the_chain_passes_through():
    """Each line of stage 2 leaves in the sample the image that its gradient was taken at."""
    card = linear_card()
    program = compile_hat(card, SampleOptions(steps=2, parameters=(("stage", (2.0,)),)))
    result = executed(program, card, keep_trace=True)
    assert torch.allclose(result.trace[0], generated(*latents()))
    assert len(result.trace) == 5
    assert not torch.allclose(result.trace[2], result.trace[0])


def test_refining_applies_the_transition_and_scores_before_and_after():
    """x -> B (alpha x + sigma n), clipped at the end alone, and the energies of the first image and the last."""
    card = linear_card()
    image = 30.0 * noise(5, 1, 8, 8)
    result = executed(refine_by_transition(card, SampleOptions(steps=2)), card, images=image)
    x = image
    for line in (1, 2):
        step = DENOISER.alpha * x + DENOISER.sigma * noise(latent_draw(line), 1, 8, 8)
        x = (step.flatten(1) @ DENOISER.matrix.T).reshape_as(x)
        assert x.abs().max() > 1.0
    last = x.clamp(-1.0, 1.0)
    assert torch.allclose(result.state, last, rtol=1e-9)
    assert torch.allclose(torch.stack(result.scores), torch.stack([ENERGY(image), ENERGY(last)]), rtol=1e-9)


STAGE_0_HAS_NO = ("steps", "step_size", "temperature", *sorted((HAT_OPTIONS | LANGEVIN_OPTIONS) - {"stage"}))


@pytest.mark.parametrize("name", STAGE_0_HAS_NO)
def test_stage_0_takes_no_option_but_itself(name):
    """One evaluation of G(z) has no chain: whatever is said of one is refused by name, wrong values among it."""
    parameters = {"stage": (0.0,)} | ({} if name in SampleOptions.__slots__ else {name: (-1.0,)})
    options = {name: -1} if name in SampleOptions.__slots__ else {}
    with pytest.raises(UnsupportedError) as caught:
        compile_sample(linear_card(), SampleOptions(parameters=tuple(sorted(parameters.items())), **options))
    assert caught.value.field == name


@pytest.mark.parametrize("stage", [1.0, 2.0])
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"step_size": 1e40}, "step_size"),
        ({"temperature": 1e-300}, "temperature"),
        ({"step_size": 1e-4, "temperature": 1e-300}, "temperature"),
    ],
)
def test_steps_that_float32_cannot_hold_are_refused_in_both_stages(stage, options, field):
    """They would be infinite in the kernel."""
    with pytest.raises(OptionError, match="float32") as caught:
        compile_hat(linear_card(), SampleOptions(parameters=(("stage", (stage,)),), **options))
    assert caught.value.field == field


def test_a_latent_step_that_float32_cannot_hold_is_refused():
    """Of the two step sizes of stage 2, that of the image may be small."""
    parameters = (("latent_step_size", (1.0,)), ("stage", (2.0,)))
    options = SampleOptions(step_size=1e-31, temperature=1e-31, parameters=parameters)
    with pytest.raises(OptionError, match="float32"):
        compile_hat(linear_card(), options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (SampleOptions(parameters=(("stage", (3.0,)),)), OptionError),
        (SampleOptions(parameters=(("stage", (1.5,)),)), OptionError),
        (SampleOptions(steps=5, parameters=(("stage", (0.0,)),)), UnsupportedError),
        (SampleOptions(parameters=(("prior", (1.0,)), ("stage", (1.0,)))), UnsupportedError),
        (SampleOptions(parameters=(("latent_step_size", (-1.0,)), ("stage", (2.0,)))), OptionError),
        (SampleOptions(temperature=-1.0, parameters=(("stage", (2.0,)),)), OptionError),
        (SampleOptions(step_size=float("nan"), parameters=(("stage", (2.0,)),)), OptionError),
    ],
)
def test_options_of_another_stage_or_out_of_range_are_refused(options, error):
    """Nothing that a caller sets is ignored."""
    with pytest.raises(error):
        compile_hat(linear_card(), options)


def test_the_distillation_target_reproduces_two_ddim_steps():
    """A student that predicts the target arrives, in one DDIM step, exactly where the teacher's two steps arrive."""
    torch.manual_seed(0)
    teacher = Denoiser(width=16, blocks=1).eval()
    grid = even_grid(teacher.truncation, 4)
    noisy = torch.randn(6, 1, 8, 8)
    step = torch.tensor([0, 0, 1, 1, 0, 0])
    start, middle, end = grid[2 * step + 2], grid[2 * step + 1], grid[2 * step]
    assert start.tolist() == [256, 256, 512, 512, 256, 256]
    assert end.tolist() == [0, 0, 256, 256, 0, 0]
    target = distillation_target(teacher, noisy, start, middle, end)
    with torch.no_grad():
        two_steps = ddim_step(teacher, ddim_step(teacher, noisy, start, middle), middle, end)
    (alpha, sigma), (alpha_end, sigma_end) = amplitudes(start), amplitudes(end)
    one_step = alpha_end * target + sigma_end * (noisy - alpha * target) / sigma
    assert torch.allclose(one_step, two_steps, atol=1e-5)
    assert torch.equal(TABLE, torch.tensor(alpha_bar(SCHEDULE)))


def test_one_step_at_the_truncation_is_the_denoiser():
    """D is the DDIM step from T' to 0 of the network it is made of."""
    torch.manual_seed(0)
    denoiser = Denoiser(width=16, blocks=1).eval()
    noisy, times = torch.randn(3, 1, 8, 8), torch.full((3,), denoiser.truncation)
    with torch.no_grad():
        assert torch.allclose(denoiser(sample=noisy), ddim_step(denoiser, noisy, times, 0 * times), atol=1e-5)


def test_the_bank_keeps_pairs_together():
    """After any number of replacements the rows of X, z_1 and z_2 that came together are still together."""
    random = torch.Generator().manual_seed(0)

    def pairs(tag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tag.view(-1, 1, 1, 1).expand(-1, 1, 8, 8), tag.view(-1, 1).expand(-1, LATENT), tag.view(-1, 1, 1, 1) + 0

    bank = Bank(*(part.clone() for part in pairs(torch.arange(20.0))))
    for round_ in range(1, 6):
        places = bank.draw(7, random)
        assert len(set(places.tolist())) == 7
        bank.overwrite(places, *pairs(100.0 * round_ + torch.arange(7.0)))
    tags = bank.z1[:, 0]
    assert torch.equal(bank.image[:, 0, 0, 0], tags)
    assert torch.equal(bank.z2.flatten(), tags)
    assert sum(tag >= 500 for tag in tags.tolist()) == 7  # the last batch is all there


def test_the_generator_loss_is_the_likelihood_of_the_product_of_gaussians():
    """Eq. 9 is N((b_1 G + b_2 G_1)/(b_1 + b_2), 1/(2 (b_1 + b_2))), which eq. 10, mended, is the log of."""
    target, generated_, proposed = (noise(k, 1, 8, 8) for k in (1, 2, 3))
    for first, second in ((1.0, 0.0), (1.0, 0.3), (2.0, 5.0)):
        mean = (first * generated_ + second * proposed) / (first + second)
        expected = ((first + second) * (target - mean).square()).mean()
        assert float(generator_loss(target, generated_, proposed, first, second)) == pytest.approx(float(expected))


def test_training_and_serving_take_the_same_steps():
    """The chain that trains H and the program of stage 1 agree: X <- X - (e^2/2)/temperature grad H, inside the box."""
    chain = Chain(steps=3, epsilon=1e-7, temperature=0.5e-13, max_displacement=0.5)  # (e^2/2)/temperature = 0.1
    start = generated(*latents())
    trained = residual_chain(ENERGY, start, chain, torch.Generator().manual_seed(0))
    served = hat(1, steps=3, step_size=0.1, temperature=0.0, parameters={"max_displacement": (0.5,)}).state
    assert torch.allclose(trained, served, atol=1e-6)


def test_the_shipped_energy_improves_what_the_shipped_generator_makes():
    """Stage 1 halves the Frechet distance of G(z), and its images are those of lower energy."""
    directory = ZOO / "digits-hat"
    card = load_checkpoint(directory)
    networks = networks_of(card, load_modules(directory, card.modules))
    quality = FrechetDigits.load()
    found = [
        run(compile_hat(card, SampleOptions(parameters=(("stage", (stage,)),))), card, networks, seed=SEED, count=300)
        for stage in (0.0, 1.0)
    ]
    generated_, refined = (quality.distance(result.state.numpy()) for result in found)
    assert refined < 0.6 * generated_
    before, after = (networks["residual_gradient"](sample=result.state)[0] for result in found)
    assert float((after < before).float().mean()) > 0.9


def test_stage_2_refuses_the_options_of_a_plain_chain():
    """What the joint chain does not have is an error that names it, and not ignored."""
    card = load_checkpoint(ZOO / "digits-hat")
    for name in ("metropolis", "temperatures", "low", "final_step_size"):
        options = SampleOptions(sampler="hat", parameters=((name, (1.0,)), ("stage", (2.0,))))
        with pytest.raises(UnsupportedError, match=name):
            compile_sample(card, options)
