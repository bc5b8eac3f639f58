"""Training of `digits-gdim` (t-GDIM) and `digits-gdim-start` (T-GDIM), both started from `digits-ddpm`.

The GAN of the paper's eqs. 52 and 53 (t-GDIM) or 54-56 (T-GDIM): a conditional energy tells pairs of data from pairs
made with the generator, and the generator is trained to lower that energy. In the notation of SPEC 1, every pair lies
on a path `T(x_0; x_T, s) = sqrt(abar_s) x_0 + sqrt(1 - abar_s) (x_T - sqrt(abar_T) x_0) / sqrt(1 - abar_T)` (eq. 8):
t-GDIM's energy sees (x_0, x_t), T-GDIM's (x_s, x_t) with s the time that the step goes to.
The two differ by one amplitude, and here by one flag.

Before that the generator is trained as a denoiser that disregards its latent, with its estimate of q(label | x_t), and
then the energy alone for a while. A quarter of the rows start from the generator's own chains instead of noised data,
so that energy and generator meet what sampling really visits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...data import NULL_LABEL, LabelledImages
from ...networks.gdim import AdaptiveGroupNorm, ConditionalEnergy, Generator
from ...schedules import alpha_bar, quadratic_grid
from .. import ddpm
from ..ddpm import SCHEDULE, Report, diffuse, drop_labels
from ..ema import moving_average
from ..trained import Losses, Trained
from .card import ENERGY_CONFIG, GENERATOR_CONFIG, LATENT, STEPS


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; the defaults are the ones of the shipped checkpoints.

    Betas are those of the paper's Table 8, its learning rates 1.6e-4 (generator) and 1.25e-4 (energy).
    """

    seed: int = 0
    batch: int = 64
    denoising_steps: int = 400
    denoising_rate: float = 5e-4
    posterior_rate: float = 2e-3
    posterior_batch: int = 128
    energy_warmup: int = 100
    iterations: int = 600
    energy_rate: float = 4e-4
    generator_rate: float = 4e-5
    betas: tuple[float, float] = (0.5, 0.9)
    gradient_penalty: float = 0.05
    penalty_every: int = 4
    overshoot_penalty: float = 1.0
    denoising_weight: float = 10.0
    label_dropout: float = 0.5
    energy_label_dropout: float = 0.3
    ema_decay: float = 0.995
    step_shares: tuple[float, ...] = (0.3, 0.3, 0.2, 0.2)
    population: int = 512
    rollouts: int = 24


@dataclass(frozen=True)
class Steps:
    """The steps t -> s of the grid, in the order of sampling. time: network times (t - 1), float32; the rest float64.

    abar_t, abar_s: signal variance where a step starts and where it ends, 1 at the last step's end.
    abar_T: that of the first step's start.
    """

    time: Tensor
    abar_t: Tensor
    abar_s: Tensor
    abar_T: float

    @classmethod
    def of_grid(cls, steps: int) -> Steps:
        table = alpha_bar(SCHEDULE)
        times = tuple(reversed(quadratic_grid(steps, SCHEDULE.steps)))
        abar = torch.tensor([table[t] for t in (*times, 0)], dtype=torch.float64)
        return cls(torch.tensor([float(t - 1) for t in times]), abar[:-1], abar[1:], float(abar[0]))


def path(clean: Tensor, start: Tensor, abar: Tensor, abar_T: float) -> Tensor:
    """T(x_0; x_T, s), eq. 8, with x_0 = clean and x_T = start; abar: (B,) float64 abar_s, one a row."""
    return diffuse(clean, (start - abar_T**0.5 * clean) / (1.0 - abar_T) ** 0.5, abar)


def energy_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Minus (52), or minus (54, 55): `-log sigmoid(h(real)) - log(1 - sigmoid(h(fake)))`, from log ratios (B,)."""
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Minus (53), or minus (56): `-log sigmoid(h(fake))`."""
    return functional.softplus(-fake).mean()


@dataclass
class Batch:
    """Rows of one iteration. step: index into `Steps`; state: x_t; label may be the null label."""

    step: Tensor
    clean: Tensor
    start: Tensor
    state: Tensor
    label: Tensor


@dataclass
class Population:
    """Chains in flight: the step that each waits for, its x_t and x_T, and its label."""

    step: Tensor
    state: Tensor
    start: Tensor
    label: Tensor


class Trainer:
    """State of one run; `run` is the whole of it.

    sees_start: train T-GDIM, whose energy sees x_s = T(x_0; x_T, s) in place of x_0.
    """

    def __init__(self, data: LabelledImages, denoiser: nn.Module, recipe: Recipe, *, sees_start: bool) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.random = torch.Generator().manual_seed(recipe.seed)
        self.images, self.labels = torch.tensor(data.images), torch.tensor(data.labels)
        self.steps = Steps.of_grid(STEPS)
        self.target = self.steps.abar_s if sees_start else torch.ones_like(self.steps.abar_s)
        self.generator = Generator(**GENERATOR_CONFIG)
        initialise_generator(self.generator, denoiser)
        self.energy = ConditionalEnergy(**ENERGY_CONFIG)
        initialise_energy(self.energy, denoiser)
        self.average = moving_average(self.generator, recipe.ema_decay)
        self.energy_average = moving_average(self.energy, recipe.ema_decay)
        self.energy_optimiser = torch.optim.Adam(self.energy.parameters(), recipe.energy_rate, recipe.betas)
        self.generator_optimiser = torch.optim.Adam(self.generator.parameters(), recipe.generator_rate, recipe.betas)
        self.posterior_optimiser = torch.optim.Adam(self.generator.posterior.parameters(), recipe.posterior_rate)
        self.population = self._new_population(recipe.population)

    def run(self, report: Report) -> Trained:
        recipe = self.recipe
        total = recipe.denoising_steps + recipe.energy_warmup + recipe.iterations
        self._pretrain(report, total)
        losses = Losses()
        for iteration in range(recipe.energy_warmup + recipe.iterations):
            self._set_rates(iteration)
            losses.add(self.iterate(iteration, train_generator=iteration >= recipe.energy_warmup))
            report(recipe.denoising_steps + iteration + 1, total, losses.recent())
        last = losses.last_tenth(recipe.iterations)
        return Trained(self.average.module.eval(), self.energy_average.module.eval(), last)

    def iterate(self, iteration: int, *, train_generator: bool) -> dict[str, float]:
        """One step of the energy, then one of the generator on the same samples; returns the losses."""
        real = self._real(torch.randint(len(self.labels), (self.recipe.batch,), generator=self.random))
        members = torch.randperm(len(self.population.step), generator=self.random)[: self.recipe.rollouts]
        batch = self._with_members(real, members)
        losses = {"posterior": self._follow_chains()}
        unclipped, clipped, batch.label = self._generate(batch, with_gradient=train_generator)
        fake = path(clipped, batch.start, self.target[batch.step], self.steps.abar_T)
        # Both sides are judged by their labels, given or drawn, and some rows of both without.
        hidden = torch.rand(real.label.shape, generator=self.random) < self.recipe.energy_label_dropout
        real.label, batch.label = (rows.label.masked_fill(hidden, NULL_LABEL) for rows in (real, batch))
        losses |= self._update_energy(iteration, real, batch, fake.detach())
        if train_generator:
            self.energy.requires_grad_(False)
            known = self.recipe.batch - self.recipe.rollouts
            loss = (
                generator_loss(self._log_ratio(fake, batch))
                + self.recipe.overshoot_penalty * (unclipped - clipped.detach()).square().mean()
                + self.recipe.denoising_weight * self._denoising(real, unclipped, known)
            )
            self.generator_optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.generator.parameters(), 10.0)
            self.generator_optimiser.step()
            self.average.update_parameters(self.generator)
            self.energy.requires_grad_(True)
        self._advance(members, clipped.detach())
        return losses

    def _pretrain(self, report: Report, total: int) -> None:
        """From the DDPM's eps at 1000 times to v at the times of the grid, whatever the latent.

        What the latent does is held still meanwhile: it would only learn to do nothing.
        """
        recipe = self.recipe
        kept = [module.style for module in self.generator.modules() if isinstance(module, AdaptiveGroupNorm)]
        for module in kept:
            module.requires_grad_(False)
        learned = [
            parameter
            for name, parameter in self.generator.named_parameters()
            if parameter.requires_grad and not name.startswith("posterior.")
        ]
        optimiser = torch.optim.AdamW(learned, recipe.denoising_rate, weight_decay=1e-4)
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: ddpm.learning_rate_factor(step, recipe.denoising_steps)
        )
        losses: list[float] = []
        for step in range(recipe.denoising_steps):
            batch = self._real(torch.randint(len(self.labels), (recipe.batch,), generator=self.random))
            unclipped, _, _ = self._generate(batch, with_gradient=True)
            abar = self.steps.abar_t[batch.step].float()
            # v = (sqrt(abar) x_t - p)/sqrt(1 - abar), so that this is the squared error of v
            loss = ((unclipped - batch.clean).square().mean(dim=(1, 2, 3)) / (1.0 - abar)).mean()
            self._update_posterior(batch.state, batch.step, batch.label)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(learned, 1.0)
            optimiser.step()
            rate.step()
            self.average.update_parameters(self.generator)
            losses.append(float(loss.detach()))
            report(step + 1, total, f"denoising {np.mean(losses[-50:]):.4f}")
        if losses:
            self.generator.load_state_dict(self.average.module.state_dict())
        for module in kept:
            module.requires_grad_(True)

    def _real(self, chosen: Tensor) -> Batch:
        """Pairs of data: x_T ~ q(x_T | x_0) and x_t = T(x_0; x_T, t), which makes x_t ~ q(x_t | x_0)."""
        shares = torch.tensor(self.recipe.step_shares)
        step = torch.multinomial(shares, len(chosen), replacement=True, generator=self.random)
        clean = self.images[chosen]
        noise = torch.randn(clean.shape, generator=self.random)
        start = diffuse(clean, noise, torch.full(chosen.shape, self.steps.abar_T, dtype=torch.float64))
        state = path(clean, start, self.steps.abar_t[step], self.steps.abar_T)
        return Batch(step, clean, start, state, self.labels[chosen])

    def _with_members(self, batch: Batch, members: Tensor) -> Batch:
        """The batch with members of the population in its last rows, which then have no clean image of their own."""
        kept, people = slice(0, len(batch.step) - len(members)), self.population
        label = drop_labels(batch.label[kept], self.recipe.label_dropout, self.random)
        return Batch(
            torch.cat([batch.step[kept], people.step[members]]),
            batch.clean,
            torch.cat([batch.start[kept], people.start[members]]),
            torch.cat([batch.state[kept], people.state[members]]),
            torch.cat([label, people.label[members]]),
        )

    def _generate(self, batch: Batch, *, with_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        """G(u; x_t, t), fresh u: the clean prediction, the same clipped to [-1, 1], and the label, given or drawn.

        The clip lets gradients through (what is outside has a loss of its own): else a saturated pixel never returned.
        """
        latent = torch.randn(len(batch.step), LATENT, generator=self.random)
        abar = self.steps.abar_t[batch.step].float().view(-1, 1, 1, 1)
        time = self.steps.time[batch.step]
        with torch.no_grad():
            label = self.generator.choose(batch.state, time, batch.label, latent)
        with torch.set_grad_enabled(with_gradient):
            v = self.generator(sample=batch.state, time=time, label=label, latent=latent)
            unclipped = abar.sqrt() * batch.state - (1.0 - abar).sqrt() * v
            clipped = unclipped + (unclipped.clamp(-1.0, 1.0) - unclipped).detach()
        return unclipped, clipped, label

    def _log_ratio(self, target: Tensor, batch: Batch) -> Tensor:
        abar_t, abar_s = self.steps.abar_t[batch.step], self.target[batch.step]
        ratio: Tensor = self.energy.log_ratio(
            target=target,
            state=batch.state,
            time=self.steps.time[batch.step],
            label=batch.label,
            signal=abar_t.sqrt().float(),
            noise=(1.0 - abar_t).sqrt().float(),
            target_signal=abar_s.sqrt().float(),
            target_noise=(1.0 - abar_s).sqrt().float(),
        )
        return ratio

    def _update_energy(self, iteration: int, data: Batch, batch: Batch, fake: Tensor) -> dict[str, float]:
        """(52) or (54, 55) with R1, `gradient_penalty/2 || grad h ||^2` at the real x_s, every few iterations."""
        recipe = self.recipe
        real = path(data.clean, data.start, self.target[data.step], self.steps.abar_T)
        penalised = iteration % recipe.penalty_every == 0
        real.requires_grad_(penalised)
        at_real = self._log_ratio(real, data)
        at_fake = self._log_ratio(fake, batch)
        loss = energy_loss(at_real, at_fake)
        losses = {"energy": float(loss.detach()), "real": float(at_real.detach().mean())}
        losses["fake"] = float(at_fake.detach().mean())
        if penalised:
            (slope,) = torch.autograd.grad(at_real.sum(), real, create_graph=True)
            penalty = slope.square().sum(dim=(1, 2, 3)).mean()
            loss = loss + 0.5 * recipe.penalty_every * recipe.gradient_penalty * penalty
        self.energy_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.energy_optimiser.step()
        self.energy_average.update_parameters(self.energy)
        for index in range(len(self.steps.time)):
            margin = at_real.detach()[data.step == index].mean() - at_fake.detach()[batch.step == index].mean()
            losses[f"margin{index}"] = float(margin.nan_to_num())
        return losses

    def _update_posterior(self, state: Tensor, step: Tensor, label: Tensor) -> float:
        """Cross entropy of q(label | x_t)."""
        loss = functional.cross_entropy(self.generator.posterior(state, self.steps.time[step]), label)
        self.posterior_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.posterior_optimiser.step()
        return float(loss.detach())

    def _follow_chains(self) -> float:
        """q(label | x_t) learns from chains with labels, once there are any.

        If it is exact on them, each state without a label is distributed as with one, and so is the sample, by
        induction. A chain's state says more of its label than noised data do, and is blurred in another way.
        """
        people = self.population
        chosen = torch.randperm(len(people.step), generator=self.random)[: self.recipe.posterior_batch]
        return self._update_posterior(people.state[chosen], people.step[chosen], people.label[chosen])

    def _denoising(self, data: Batch, clean: Tensor, known: int) -> Tensor:
        """Squared error of the first `known` clean predictions; the energy alone lets go of labels and of variety."""
        return (clean - data.clean)[:known].square().mean()

    def _new_population(self, size: int) -> Population:
        start = torch.randn(size, *self.images.shape[1:], generator=self.random)
        label = self.labels[torch.randint(len(self.labels), (size,), generator=self.random)]
        return Population(torch.zeros(size, dtype=torch.int64), start.clone(), start, label)

    def _advance(self, members: Tensor, clean: Tensor) -> None:
        """Members go on along the path to their own prediction (eq. 13); those at the end start anew from noise.

        clean: predictions of a batch, the members' ones last.
        """
        people, fresh = self.population, self._new_population(len(members))
        step, start = people.step[members], people.start[members]
        done = step == len(self.steps.time) - 1
        wide = done.view(-1, 1, 1, 1)
        state = path(clean[len(clean) - len(members) :], start, self.steps.abar_s[step], self.steps.abar_T)
        people.step[members] = torch.where(done, fresh.step, step + 1)
        people.state[members] = torch.where(wide, fresh.state, state)
        people.start[members] = torch.where(wide, fresh.start, start)
        people.label[members] = torch.where(done, fresh.label, people.label[members])

    def _set_rates(self, iteration: int) -> None:
        """Constant rates, then a linear decay to a tenth over the second half."""
        recipe = self.recipe
        done = (iteration - recipe.energy_warmup) / max(1, recipe.iterations)
        factor = min(1.0, max(0.1, 2.0 * (1.0 - done)))
        for optimiser, rate in (
            (self.energy_optimiser, recipe.energy_rate),
            (self.generator_optimiser, recipe.generator_rate),
        ):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor


def initialise_generator(generator: nn.Module, denoiser: nn.Module) -> None:
    """Copy a DDPM's weights into a generator's U-Net."""
    learned = {f"unet.{key}": value for key, value in denoiser.state_dict().items()}
    generator.load_state_dict({**generator.state_dict(), **learned})


def initialise_energy(energy: nn.Module, denoiser: nn.Module) -> None:
    """Copy the downward half of a DDPM into an energy.

    The first layer sees the clean image where the DDPM saw the noisy one; the noise has its default start.
    """
    weights = {key.replace("mid_block.resnets", "mid_resnets"): value for key, value in denoiser.state_dict().items()}
    own = energy.state_dict()
    channels = weights["conv_in.weight"].shape[1]
    weights["conv_in.weight"] = torch.cat([weights["conv_in.weight"], own["conv_in.weight"][:, channels:]], dim=1)
    energy.load_state_dict({**own, **{key: value for key, value in weights.items() if key in own}})
