"""Training of `digits-vdrme`: Algorithm 1 of the VDRME paper, started from `digits-ddpm`.

Each iteration draws rows of several grids at once (4, 6 and 8 steps share one generator and one energy) and makes the
paper's three updates: the energy by eq. 19, the generator by eq. 18 with the conditional energy *with* its quadratic
(SPEC 3), the entropy classifier T_psi by eq. 14 on permuted noise.

Two things come before the first adversarial step, because without them the samples fell apart (see README.md here):
the generator is trained as a denoiser that disregards its noise input (A.3.1), and the energy is trained alone for a
while on the samples of that generator.

Half of the rows start from noised data as printed. The other half are a population of chains in flight:
their x_{i+1} is the generator's own last output, so energy and generator meet what sampling really visits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...data import NULL_LABEL, LabelledImages
from ...networks import build
from ...networks.vdrme import EntropyClassifier
from ...schedules import alpha_bar
from .. import ddpm
from ..ddpm import SCHEDULE, Report, diffuse, drop_labels
from ..ema import moving_average
from ..trained import Losses, Trained
from .card import ENERGY_CONFIG, GENERATOR_CONFIG
from .grids import Transitions


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; the defaults are the ones of the shipped checkpoint.

    Betas are those of the paper's Table 4. Its learning rates (4e-5, 2e-5, 1e-5) are for networks a hundred times
    as large and runs many times as long.
    """

    seed: int = 0
    batch: int = 64
    denoising_steps: int = 300
    denoising_rate: float = 5e-4
    energy_warmup: int = 200
    iterations: int = 1400
    energy_rate: float = 3e-4
    generator_rate: float = 5e-5
    entropy_rate: float = 1e-3
    energy_betas: tuple[float, float] = (0.0, 0.999)
    generator_betas: tuple[float, float] = (0.3, 0.999)
    entropy_betas: tuple[float, float] = (0.3, 0.999)
    energy_weight: float = 1.0
    recovery_weight: float = 1.0
    entropy_weight: float = 0.05
    gradient_penalty: float = 0.1
    penalty_every: int = 4
    energy_l2: float = 1e-3
    overshoot_penalty: float = 1.0
    denoising_weight: float = 0.5
    label_dropout: float = 0.5
    ema_decay: float = 0.998
    population: int = 512


@dataclass
class Population:
    """Chains in flight: where each is on its grid, its state x_{i+1}, and the training image that lends its label."""

    transition: Tensor
    state: Tensor
    image: Tensor


@dataclass
class Batch:
    """Rows of one iteration. previous: x_{i+1}; real: a draw of x_i from the data; label may be the null label.

    clean: x_0 of the first half of the rows, whose x_{i+1} was made from it. members: the second half's places in the
    population.
    """

    transition: Tensor
    previous: Tensor
    real: Tensor
    label: Tensor
    clean: Tensor
    members: Tensor


class Trainer:
    """State of one run of Algorithm 1. `run` is the whole of it; the methods are its lines."""

    def __init__(self, data: LabelledImages, denoiser: nn.Module, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.random = torch.Generator().manual_seed(recipe.seed)
        self.images, self.labels = torch.tensor(data.images), torch.tensor(data.labels)
        self.abar = torch.tensor(alpha_bar(SCHEDULE))
        self.transitions = Transitions.of_grids()
        self.generator = build("vdrme-generator", GENERATOR_CONFIG)
        initialise_from_denoiser(self.generator, denoiser)
        self.energy = build("vdrme-energy", ENERGY_CONFIG)
        initialise_energy(self.energy, denoiser)
        self.entropy = EntropyClassifier()
        self.average = moving_average(self.generator, recipe.ema_decay)
        self.energy_average = moving_average(self.energy, recipe.ema_decay)
        self.energy_optimiser = torch.optim.Adam(self.energy.parameters(), recipe.energy_rate, recipe.energy_betas)
        self.generator_optimiser = torch.optim.Adam(
            self.generator.parameters(), recipe.generator_rate, recipe.generator_betas
        )
        self.entropy_optimiser = torch.optim.Adam(self.entropy.parameters(), recipe.entropy_rate, recipe.entropy_betas)
        self.population = self._new_population(recipe.population)

    def run(self, report: Report) -> Trained:
        recipe = self.recipe
        total = recipe.denoising_steps + recipe.energy_warmup + recipe.iterations
        self._pretrain(report, total)
        self.average.module.load_state_dict(self.generator.state_dict())
        losses = Losses()
        for iteration in range(recipe.energy_warmup + recipe.iterations):
            self._set_rates(iteration)
            losses.add(self.iterate(iteration, train_generator=iteration >= recipe.energy_warmup))
            report(recipe.denoising_steps + iteration + 1, total, losses.recent())
        last = losses.last_tenth(recipe.iterations)
        return Trained(self.average.module.eval(), self.energy_average.module.eval(), last)

    def iterate(self, iteration: int, *, train_generator: bool) -> dict[str, float]:
        """One pass of Algorithm 1's loop; returns the losses."""
        batch = self._draw_batch()
        moves = self.transitions
        row = batch.transition
        latent = torch.randn(batch.previous.shape, generator=self.random)
        fake, clean = self._generate(batch, latent, with_gradient=train_generator)
        losses = self._update_energy(iteration, batch, fake.detach())
        recovery = self._quadratic(batch, fake)
        losses["recovery"] = float(recovery.detach().mean())
        permuted = latent[torch.randperm(len(latent), generator=self.random)]
        if train_generator:
            self.energy.requires_grad_(False)
            self.entropy.requires_grad_(False)
            energy = self.energy(sample=fake, time=moves.target[row])
            information = self._information(batch, fake, latent, permuted)
            loss = (
                self.recipe.energy_weight * energy.mean()
                + self.recipe.recovery_weight * recovery.mean()
                - self.recipe.entropy_weight * information
                + self.recipe.overshoot_penalty * (clean - clean.clamp(-1.0, 1.0)).square().mean()
                + self.recipe.denoising_weight * self._denoising(batch, clean)
            )
            self.generator_optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.generator.parameters(), 10.0)
            self.generator_optimiser.step()
            self.average.update_parameters(self.generator)
            self.energy.requires_grad_(True)
            self.entropy.requires_grad_(True)
        # T_psi: maximise (14)
        information = self._information(batch, fake.detach(), latent, permuted)
        self.entropy_optimiser.zero_grad(set_to_none=True)
        (-information).backward()
        self.entropy_optimiser.step()
        losses["information"] = float(information.detach())
        self._advance(batch, fake.detach())
        return losses

    def _pretrain(self, report: Report, total: int) -> None:
        """A.3.1: learn to denoise whatever the noise input and the target time are, starting from the DDPM.

        The noise block itself is held still meanwhile: it would only learn to shut the noise out.
        """
        recipe = self.recipe
        kept = [module for name, module in self.generator.named_children() if name.startswith("noise_")]
        for block in kept:
            block.requires_grad_(False)
        learned = [parameter for parameter in self.generator.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(learned, recipe.denoising_rate, weight_decay=1e-4)
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: ddpm.learning_rate_factor(step, recipe.denoising_steps)
        )
        losses: list[float] = []
        for step in range(recipe.denoising_steps):
            chosen = torch.randint(len(self.labels), (recipe.batch,), generator=self.random)
            row = torch.randint(len(self.transitions.source), (recipe.batch,), generator=self.random)
            clean = self.images[chosen]
            noise, latent = (torch.randn(clean.shape, generator=self.random) for _ in range(2))
            abar = self.transitions.abar_source[row]
            v = self.generator(
                sample=diffuse(clean, noise, abar),
                time=self.transitions.source[row],
                target_time=self.transitions.target[row],
                label=drop_labels(self.labels[chosen], recipe.label_dropout, self.random),
                latent=latent,
            )
            wide = abar.float().view(-1, 1, 1, 1)
            loss = (v - (wide.sqrt() * noise - (1.0 - wide).sqrt() * clean)).square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.generator.parameters(), 1.0)
            optimiser.step()
            rate.step()
            self.average.update_parameters(self.generator)
            losses.append(float(loss.detach()))
            report(step + 1, total, f"denoising {np.mean(losses[-50:]):.4f}")
        self.generator.load_state_dict(self.average.module.state_dict())
        for block in kept:
            block.requires_grad_(True)

    def _draw_batch(self) -> Batch:
        """Half pairs (x_{i+1}, x_i) of data (eq. 1, Markov coupling), half population members with a real x_i."""
        half = self.recipe.batch // 2
        moves = self.transitions
        row = torch.randint(len(moves.source), (half,), generator=self.random)
        chosen = torch.randint(len(self.labels), (half,), generator=self.random)
        real = self._noised(chosen, moves.abar_target[row])
        noise = torch.randn(real.shape, generator=self.random)
        previous = diffuse(real, noise, moves.abar_source[row] / moves.abar_target[row])
        members = torch.randperm(len(self.population.image), generator=self.random)[:half]
        flying, image = self.population.transition[members], self.population.image[members]
        label = self.labels[torch.cat([chosen, image])]
        return Batch(
            transition=torch.cat([row, flying]),
            previous=torch.cat([previous, self.population.state[members]]),
            real=torch.cat([real, self._noised(image, moves.abar_target[flying])]),
            label=drop_labels(label, self.recipe.label_dropout, self.random),
            clean=self.images[chosen],
            members=members,
        )

    def _noised(self, image: Tensor, abar: Tensor) -> Tensor:
        clean = self.images[image]
        return diffuse(clean, torch.randn(clean.shape, generator=self.random), abar)

    def _generate(self, batch: Batch, latent: Tensor, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
        """Eq. 15: x_i from x_{i+1}, and the clean prediction in between, not yet clipped to [-1, 1].

        The clip lets gradients through (what is outside has a loss of its own): else a saturated pixel never returned.
        """
        moves, row = self.transitions, batch.transition
        with torch.set_grad_enabled(with_gradient):
            v = self.generator(
                sample=batch.previous,
                time=moves.source[row],
                target_time=moves.target[row],
                label=batch.label,
                latent=latent,
            )
            source = moves.abar_source[row].view(-1, 1, 1, 1)
            clean = source.sqrt().float() * batch.previous - (1.0 - source).sqrt().float() * v
            clipped = clean + (clean.clamp(-1.0, 1.0) - clean).detach()
            keep, gain = self._step_coefficients(batch)
            fake = keep * batch.previous + gain * clipped
        return fake, clean

    def _denoising(self, batch: Batch, clean: Tensor) -> Tensor:
        """Squared error of the clean prediction where x_0 is known, times abar: it binds the low noise scales only.

        There the DDPM that the generator started from is right and the energy has little to add;
        without it, samples of one label lose their variety in the first hundred iterations and regain it slowly.
        """
        half = len(batch.clean)
        weight = self.transitions.abar_source[batch.transition[:half]].float()
        return (weight * (clean[:half] - batch.clean).square().mean(dim=(1, 2, 3))).mean()

    def _quadratic(self, batch: Batch, sample: Tensor) -> Tensor:
        """Eq. 6: `|| sqrt(a_i) x_i - x_{i+1} ||^2 / (2 b_i)`, per pixel as E is; a_i is a ratio of two abar."""
        ratio = (self.transitions.abar_source / self.transitions.abar_target)[batch.transition].float()
        distance = (ratio.sqrt().view(-1, 1, 1, 1) * sample - batch.previous).square().mean(dim=(1, 2, 3))
        return distance / (2.0 * (1.0 - ratio))

    def _information(self, batch: Batch, sample: Tensor, latent: Tensor, permuted: Tensor) -> Tensor:
        """Eq. 14: the Jensen-Shannon bound, pairs against permuted noise; at most 0, -2 log 2 if noise is not used."""
        keep, gain = self._step_coefficients(batch)
        change, time = (sample - keep * batch.previous) / gain, self.transitions.source[batch.transition]
        paired = self.entropy(change=change, latent=latent, previous=batch.previous, time=time)
        broken = self.entropy(change=change, latent=permuted, previous=batch.previous, time=time)
        return -functional.softplus(-paired).mean() - functional.softplus(broken).mean()

    def _step_coefficients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`x_i = keep x_{i+1} + gain p`, a DDIM step in terms of the clean image p (SPEC 1, m = 0)."""
        row = batch.transition
        source, target = self.transitions.abar_source[row], self.transitions.abar_target[row]
        keep = ((1.0 - target) / (1.0 - source)).sqrt()
        gain = target.sqrt() - keep * source.sqrt()
        return keep.float().view(-1, 1, 1, 1), gain.float().view(-1, 1, 1, 1)

    def _update_energy(self, iteration: int, batch: Batch, fake: Tensor) -> dict[str, float]:
        """Eq. 19, with the gradient penalty on the data (every few iterations, scaled up) and a little L2."""
        recipe = self.recipe
        moves, row = self.transitions, batch.transition
        target = moves.target[row]
        both = self.energy(sample=torch.cat([batch.real, fake]), time=torch.cat([target, target]))
        real_energy, fake_energy = both.chunk(2)
        loss = real_energy.mean() - fake_energy.mean() + recipe.energy_l2 * both.square().mean()
        if iteration % recipe.penalty_every == 0:
            half = len(fake) // 2
            # Half of the rows at data, half at samples: both ends of the slope that trains the generator.
            leaf = torch.cat([batch.real[:half], fake[half:]]).requires_grad_(True)
            at_leaf = self.energy(sample=leaf, time=target)
            (slope,) = torch.autograd.grad(at_leaf.sum(), leaf, create_graph=True)
            penalty = slope.square().sum(dim=(1, 2, 3)).mean()
            loss = loss + recipe.penalty_every * recipe.gradient_penalty * penalty
        self.energy_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.energy_optimiser.step()
        self.energy_average.update_parameters(self.energy)
        return {"real": float(real_energy.detach().mean()), "fake": float(fake_energy.detach().mean())}

    def _new_population(self, size: int) -> Population:
        chain = torch.randint(len(self.transitions.first), (size,), generator=self.random)
        return Population(
            self.transitions.first[chain],
            torch.randn(size, *self.images.shape[1:], generator=self.random),
            torch.randint(len(self.labels), (size,), generator=self.random),
        )

    def _advance(self, batch: Batch, fake: Tensor) -> None:
        """Members move one transition on; those at the end of their grid start anew from noise."""
        half = len(batch.members)
        following = self.transitions.following[batch.transition[-half:]]
        done = following < 0
        fresh = self._new_population(half)
        members, people = batch.members, self.population
        people.transition[members] = torch.where(done, fresh.transition, following)
        people.state[members] = torch.where(done.view(-1, 1, 1, 1), fresh.state, fake[-half:])
        people.image[members] = torch.where(done, fresh.image, people.image[members])

    def _set_rates(self, iteration: int) -> None:
        """Constant rates, then a linear decay to a tenth over the last third."""
        recipe = self.recipe
        done = (iteration - recipe.energy_warmup) / max(1, recipe.iterations)
        factor = min(1.0, max(0.1, 3.0 * (1.0 - done)))
        for optimiser, rate in (
            (self.energy_optimiser, recipe.energy_rate),
            (self.generator_optimiser, recipe.generator_rate),
            (self.entropy_optimiser, recipe.entropy_rate),
        ):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor


def initialise_from_denoiser(generator: nn.Module, denoiser: nn.Module) -> None:
    """Copy a DDPM's weights into a generator."""
    weights = dict(denoiser.state_dict())
    labels = weights.pop("class_embedding.weight")
    learned = {"label_embedding.weight": labels, **{f"unet.{key}": value for key, value in weights.items()}}
    generator.load_state_dict({**generator.state_dict(), **learned})


def initialise_energy(energy: nn.Module, denoiser: nn.Module) -> None:
    """Copy the downward half of a DDPM into an energy, under its null label, whose embedding is added to the time's."""
    weights = {key.replace("mid_block.resnets", "mid_resnets"): value for key, value in denoiser.state_dict().items()}
    weights["time_embedding.linear_2.bias"] = (
        weights["time_embedding.linear_2.bias"] + weights["class_embedding.weight"][NULL_LABEL]
    )
    own = energy.state_dict()
    energy.load_state_dict({**own, **{key: value for key, value in weights.items() if key in own}})
