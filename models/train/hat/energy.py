"""The two stages that train Hat Diffusion EBM's energy: Algorithm 1, with G_1, and Algorithm 2, the energy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...networks.hat import Denoiser, Energy, JointEnergy, Proposal
from ..ema import moving_average
from .diffusion import Tell


@dataclass(frozen=True)
class Chain:
    """A short chain of Langevin steps, `x <- x - (e^2/2) grad H / temperature + e n`.

    steps: of Y in stage 1; of Z and of Y each in stage 2. epsilon: e, of Y. latent_epsilon: e, of Z.
    max_displacement: bound of the norm of the gradient's part of a step.
    """

    steps: int
    epsilon: float
    temperature: float
    latent_epsilon: float = 0.0
    max_displacement: float = 1.0

    def step(self, x: Tensor, gradient: Tensor, random: torch.Generator, *, epsilon: float, prior: bool) -> Tensor:
        """One step; prior: with the drift -x of a prior N(0, I), which the temperature does not touch."""
        move = -0.5 * epsilon * epsilon / self.temperature * gradient
        norm = move.flatten(1).norm(dim=1).clamp_min(torch.finfo(move.dtype).tiny)
        move = move * (self.max_displacement / norm).clamp_max(1.0).view(-1, *[1] * (x.dim() - 1))
        keep = 1.0 - 0.5 * epsilon * epsilon if prior else 1.0
        return keep * x + move + epsilon * torch.randn(x.shape, generator=random)


@dataclass
class Bank:
    """Past pairs (X, Z), from which the generator learns (section 3.3.1). Rows of the three tensors belong together."""

    image: Tensor
    z1: Tensor
    z2: Tensor

    def draw(self, count: int, random: torch.Generator) -> Tensor:
        """Places of `count` different pairs."""
        return torch.randperm(len(self.image), generator=random)[:count]

    def overwrite(self, places: Tensor, image: Tensor, z1: Tensor, z2: Tensor) -> None:
        self.image[places], self.z1[places], self.z2[places] = image, z1, z2


def residual_chain(energy: nn.Module, image: Tensor, chain: Chain, random: torch.Generator) -> Tensor:
    """Stage 1: steps on Y of `H(g + Y)` from Y = 0, written in X = g + Y; images stay within [-1, 1]."""
    x = image
    for _ in range(chain.steps):
        leaf = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(energy(sample=leaf).sum(), leaf)
        x = chain.step(x, gradient, random, epsilon=chain.epsilon, prior=False).clamp(-1.0, 1.0)
    return x


def joint_chain(joint: nn.Module, z1: Tensor, z2: Tensor, chain: Chain, random: torch.Generator) -> Tensor:
    """Stage 2: steps on Z and on Y in turn, of `H(G(Z) + Y)` from Y = 0; returns the images G(Z) + Y."""
    state = {"y": torch.zeros_like(z2), "z1": z1, "z2": z2}
    for _ in range(chain.steps):
        for moved, epsilon in ((("z1", "z2"), chain.latent_epsilon), (("y",), chain.epsilon)):
            leaves = {name: state[name].detach().requires_grad_(name in moved) for name in state}
            energy, _ = joint(**leaves)
            gradients = torch.autograd.grad(energy.sum(), [leaves[name] for name in moved])
            for name, gradient in zip(moved, gradients, strict=True):
                state[name] = chain.step(state[name], gradient, random, epsilon=epsilon, prior=name != "y")
    with torch.no_grad():
        _, image = joint(**state)
    found: Tensor = image
    return found


def generator_loss(target: Tensor, generated: Tensor, proposed: Tensor, first: float, second: float) -> Tensor:
    """Eq. 10 per pixel, less the normaliser of eq. 9, which does depend on the two means (SPEC 4).

    target: X. generated: G(z). proposed: G_1(z_1). first, second: beta_1, beta_2.
    """
    shared = first * second / (first + second)
    return (
        first * (target - generated).square()
        + second * (target - proposed).square()
        - shared * (generated - proposed).square()
    ).mean()


@dataclass(frozen=True)
class StageRecipe:
    """Hyperparameters of a stage. beta_1, beta_2: weights of eq. 9. data_noise: std of noise on the data that H sees,
    which are whole multiples of 1/8 and mostly -1 in the background, as no sample is."""

    iterations: int
    chain: Chain
    batch: int = 64
    energy_rate: float = 3e-4
    generator_rate: float = 1e-3
    beta_1: float = 1.0
    beta_2: float = 0.05
    bank: int = 1024
    data_noise: float = 0.02
    ema: float = 0.995
    energy_l2: float = 1e-3


class Stages:
    """State of both stages: the data, the frozen denoiser, and the networks that learn.

    After a stage `energy` and `proposal` hold the moving averages of what it trained: with them the samples are better.
    """

    def __init__(
        self, images: Tensor, denoiser: Denoiser, energy: Energy, proposal: Proposal, random: torch.Generator
    ) -> None:
        self.images, self.denoiser, self.random = images, denoiser.requires_grad_(False), random
        self.energy, self.proposal = energy, proposal

    def first(self, recipe: StageRecipe, tell: Tell) -> None:
        """Algorithm 1: one update of H by eq. 2 and one of G_1 by eq. 10 from the bank, in turn."""
        energy_optimiser = torch.optim.Adam(self.energy.parameters(), recipe.energy_rate, (0.5, 0.999))
        generator_optimiser = torch.optim.Adam(self.proposal.parameters(), recipe.generator_rate, (0.5, 0.999))
        energy_average = moving_average(self.energy, recipe.ema)
        proposal_average = moving_average(self.proposal, recipe.ema)
        z1, z2 = self.latents(recipe.bank)
        with torch.no_grad():
            bank = Bank(self.denoiser.transition(self.proposal(z1=z1), z2), z1, z2)
        log: list[tuple[float, ...]] = []
        for iteration in range(recipe.iterations):
            decay(energy_optimiser, recipe.energy_rate, iteration, recipe.iterations)
            decay(generator_optimiser, recipe.generator_rate, iteration, recipe.iterations)
            z1, z2 = self.latents(recipe.batch)
            with torch.no_grad():
                start = self.denoiser.transition(self.proposal(z1=z1), z2)
            self.energy.requires_grad_(False)
            refined = residual_chain(self.energy, start, recipe.chain, self.random)
            losses = self.update_energy(energy_optimiser, refined, recipe)
            energy_average.update_parameters(self.energy)
            places = bank.draw(recipe.batch, self.random)
            proposed = self.proposal(z1=bank.z1[places])
            generated = self.denoiser.transition(proposed, bank.z2[places])
            loss = generator_loss(bank.image[places], generated, proposed, recipe.beta_1, recipe.beta_2)
            generator_optimiser.zero_grad(set_to_none=True)
            loss.backward()
            generator_optimiser.step()
            proposal_average.update_parameters(self.proposal)
            bank.overwrite(places, refined, z1, z2)
            moved = (refined - start).flatten(1).norm(dim=1).mean()
            log.append((*losses, float(loss.detach()), float(moved)))
            data, samples, fit, move = np.mean(log[-50:], axis=0)
            tell(iteration + 1, f"H data {data:.3f} samples {samples:.3f} G_1 {fit:.4f} moved {move:.2f}")
        self.energy.load_state_dict(energy_average.module.state_dict())
        self.proposal.load_state_dict(proposal_average.module.state_dict())

    def second(self, recipe: StageRecipe, tell: Tell) -> None:
        """Algorithm 2: G is frozen, the samples move in Z and in Y."""
        joint = JointEnergy(self.energy, self.proposal.requires_grad_(False), self.denoiser)
        optimiser = torch.optim.Adam(self.energy.parameters(), recipe.energy_rate, (0.5, 0.999))
        energy_average = moving_average(self.energy, recipe.ema)
        log: list[tuple[float, ...]] = []
        for iteration in range(recipe.iterations):
            decay(optimiser, recipe.energy_rate, iteration, recipe.iterations)
            z1, z2 = self.latents(recipe.batch)
            self.energy.requires_grad_(False)
            refined = joint_chain(joint, z1, z2, recipe.chain, self.random)
            with torch.no_grad():
                start = self.denoiser.transition(self.proposal(z1=z1), z2)
            losses = self.update_energy(optimiser, refined, recipe)
            energy_average.update_parameters(self.energy)
            log.append((*losses, float((refined - start).flatten(1).norm(dim=1).mean())))
            data, samples, move = np.mean(log[-50:], axis=0)
            tell(iteration + 1, f"H data {data:.3f} samples {samples:.3f} moved {move:.2f}")
        self.energy.load_state_dict(energy_average.module.state_dict())

    def latents(self, count: int) -> tuple[Tensor, Tensor]:
        z1 = torch.randn(count, self.proposal.expand.in_features, generator=self.random)
        return z1, torch.randn(count, *self.images.shape[1:], generator=self.random)

    def update_energy(
        self, optimiser: torch.optim.Optimizer, refined: Tensor, recipe: StageRecipe
    ) -> tuple[float, float]:
        """Eq. 2, with a little L2, as H has no level of its own; returns mean energies of data and samples."""
        self.energy.requires_grad_(True)
        chosen = torch.randint(len(self.images), (len(refined),), generator=self.random)
        data = self.images[chosen]
        data = data + recipe.data_noise * torch.randn(data.shape, generator=self.random)
        both = self.energy(sample=torch.cat([data, refined]))
        positive, negative = both.chunk(2)
        loss = positive.mean() - negative.mean() + recipe.energy_l2 * both.square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.energy.parameters(), 1.0)
        optimiser.step()
        return float(positive.detach().mean()), float(negative.detach().mean())


def decay(optimiser: torch.optim.Optimizer, rate: float, iteration: int, iterations: int) -> None:
    """A constant rate, then linear to a tenth over the last third."""
    factor = min(1.0, max(0.1, 3.0 * (1.0 - iteration / iterations)))
    for group in optimiser.param_groups:
        group["lr"] = rate * factor
