"""Training of `checkerboard-vdrme`: Algorithm 1 of the VDRME paper on points of the plane, in 5 steps.

Each iteration draws pairs (x_{i+1}, x_i) of all five transitions, several samples of the generator for each x_{i+1},
and makes the paper's updates: the energy by eq. 19, the generator by eq. 18 with the conditional energy *with* its
quadratic (SPEC 3), the entropy by the 1-nearest-neighbour estimate (eq. 12) among the samples of one x_{i+1}.
There is no classifier to train, and nothing to start from: both networks begin as what is exact for Gaussian data.

Here energies are in nats (temperature 1, entropy weight 1), so that exp(-E)/Z is a density that can be compared
with the data's (`models.metrics.checkerboard`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..card import (
    EnergySpec,
    ImageSpec,
    LangevinSpec,
    ModelCard,
    ModuleSpec,
    NetworkSpec,
    SamplingSpec,
    ScaleSpec,
    TensorSpec,
)
from ..checkpoint import save_checkpoint, save_module
from ..metrics.checkerboard import VARIANCE, points
from ..networks.checkerboard import Energy, Generator
from ..schedules import alpha_bar
from .calibration import calibrate_checkpoint
from .ddpm import SCHEDULE, Report, diffuse
from .ema import moving_average
from .provenance import provenance
from .trained import Losses, Trained
from .vdrme.grids import grid

NAME = "checkerboard-vdrme"
STEPS = 5
GRID = grid(STEPS)
"""Network times 999 > ... > 0."""

LIMIT = 4.0
"""Accepted coordinates: twice the board, so that points off it can be scored."""

CALIBRATION_SEED, CALIBRATION_SIZE = 1, 400
"""Points to calibrate the energies with; training draws from the seed of its recipe."""

SCHEDULE_CONFIG: dict[str, Any] = {"kind": SCHEDULE.kind, "steps": SCHEDULE.steps}
GENERATOR_CONFIG: dict[str, Any] = {"width": 128, "depth": 3, "variance": VARIANCE, "schedule": SCHEDULE_CONFIG}
ENERGY_CONFIG: dict[str, Any] = {"width": 128, "depth": 3, "variance": VARIANCE, "schedule": SCHEDULE_CONFIG}


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; the defaults are the ones of the shipped checkpoint. Betas are those of the paper's Table 4.

    shares: of the rows, for each transition, the noisiest first.
    """

    seed: int = 0
    batch: int = 320
    samples: int = 6
    shares: tuple[float, ...] = (0.10, 0.15, 0.20, 0.25, 0.30)
    iterations: int = 6000
    energy_rate: float = 1e-3
    generator_rate: float = 5e-4
    energy_betas: tuple[float, float] = (0.0, 0.999)
    generator_betas: tuple[float, float] = (0.3, 0.999)
    entropy_weight: float = 1.0
    distance_floor: float = 1e-3
    gradient_penalty: float = 5e-5
    penalty_every: int = 4
    energy_l2: float = 1e-3
    hollow_penalty: float = 0.03
    ema_decay: float = 0.999


class Trainer:
    """State of one run of Algorithm 1."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.random = torch.Generator().manual_seed(recipe.seed)
        self.shares = torch.tensor(recipe.shares)
        self.times = torch.tensor(GRID, dtype=torch.float32)
        table = alpha_bar(SCHEDULE)
        abar = torch.tensor([table[t + 1] for t in GRID])
        abar[-1] = 1.0
        self.abar_source, self.abar_target = abar[:-1], abar[1:]
        self.data = torch.tensor(points(1 << 20, recipe.seed), dtype=torch.float32)
        self.generator = Generator(**GENERATOR_CONFIG)
        self.energy = Energy(**ENERGY_CONFIG)
        self.average = moving_average(self.generator, recipe.ema_decay)
        self.energy_average = moving_average(self.energy, recipe.ema_decay)
        self.energy_optimiser = torch.optim.Adam(self.energy.parameters(), recipe.energy_rate, recipe.energy_betas)
        self.generator_optimiser = torch.optim.Adam(
            self.generator.parameters(), recipe.generator_rate, recipe.generator_betas
        )

    def run(self, report: Report) -> Trained:
        recipe = self.recipe
        losses = Losses()
        for iteration in range(recipe.iterations):
            self._set_rates(iteration)
            losses.add(self.iterate(iteration))
            if iteration % 50 == 49 or iteration == recipe.iterations - 1:
                report(iteration + 1, recipe.iterations, losses.recent())
        last = losses.last_tenth(recipe.iterations)
        return Trained(self.average.module.eval(), self.energy_average.module.eval(), last)

    def iterate(self, iteration: int) -> dict[str, float]:
        """One pass of Algorithm 1's loop; returns the losses."""
        recipe = self.recipe
        row = torch.multinomial(self.shares, recipe.batch, replacement=True, generator=self.random)
        clean = self.data[torch.randint(len(self.data), (recipe.batch,), generator=self.random)][:, :, None, None]
        source, target = self.abar_source[row], self.abar_target[row]
        real = diffuse(clean, torch.randn(clean.shape, generator=self.random), target)
        previous = diffuse(real, torch.randn(clean.shape, generator=self.random), source / target)
        fake = self._generate(row, previous)
        losses = self._update_energy(iteration, row, real, fake[0].detach())
        self.energy.requires_grad_(False)
        energy = self.energy(sample=fake.flatten(0, 1), time=self.times[row + 1].repeat(recipe.samples)).mean()
        recovery = self._quadratic(row, fake, previous).mean()
        entropy = nearest_neighbour_entropy(fake.flatten(2), recipe.distance_floor).mean()
        self.generator_optimiser.zero_grad(set_to_none=True)
        (energy + recovery - recipe.entropy_weight * entropy).backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), 10.0)
        self.generator_optimiser.step()
        self.average.update_parameters(self.generator)
        self.energy.requires_grad_(True)
        return {**losses, "recovery": float(recovery.detach()), "entropy": float(entropy.detach())}

    def _generate(self, row: Tensor, previous: Tensor) -> Tensor:
        """Eq. 15: `samples` draws of x_i for each x_{i+1}; (samples, B, 2, 1, 1)."""
        count = self.recipe.samples
        rows, state = row.repeat(count), previous.repeat(count, 1, 1, 1)
        latent = torch.randn(state.shape, generator=self.random)
        v = self.generator(sample=state, time=self.times[rows], target_time=self.times[rows + 1], latent=latent)
        source, target = (values[rows].view(-1, 1, 1, 1) for values in (self.abar_source, self.abar_target))
        clean = source.sqrt().float() * state - (1.0 - source).sqrt().float() * v
        keep = ((1.0 - target) / (1.0 - source)).sqrt()
        gain = target.sqrt() - keep * source.sqrt()
        return (keep.float() * state + gain.float() * clean).unflatten(0, (count, -1))

    def _quadratic(self, row: Tensor, fake: Tensor, previous: Tensor) -> Tensor:
        """Eq. 6: `||sqrt(a_i) x_i - x_{i+1}||^2 / (2 b_i)`, (samples, B); a_i is a ratio of two abar."""
        ratio = (self.abar_source / self.abar_target)[row].float()
        distance = (ratio.sqrt().view(-1, 1, 1, 1) * fake - previous).square().sum(dim=(2, 3, 4))
        return distance / (2.0 * (1.0 - ratio))

    def _update_energy(self, iteration: int, row: Tensor, real: Tensor, fake: Tensor) -> dict[str, float]:
        """Eq. 19, with the gradient penalty (every few iterations, scaled up) and a little L2 that holds the level."""
        recipe = self.recipe
        time_of = self.times[row + 1]
        both = self.energy(sample=torch.cat([real, fake]), time=torch.cat([time_of, time_of]))
        real_energy, fake_energy = both.chunk(2)
        loss = real_energy.mean() - fake_energy.mean() + recipe.energy_l2 * real_energy.square().mean()
        loss = loss + recipe.hollow_penalty * self._hollows(time_of)
        if iteration % recipe.penalty_every == 0:
            leaf = torch.cat([real, fake]).requires_grad_(True)
            at_leaf = self.energy(sample=leaf, time=torch.cat([time_of, time_of]))
            (slope,) = torch.autograd.grad(at_leaf.sum(), leaf, create_graph=True)
            loss = loss + recipe.penalty_every * recipe.gradient_penalty * slope.square().sum(dim=(1, 2, 3)).mean()
        self.energy_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.energy.parameters(), 10.0)
        self.energy_optimiser.step()
        self.energy_average.update_parameters(self.energy)
        return {"real": float(real_energy.detach().mean()), "fake": float(fake_energy.detach().mean())}

    def _hollows(self, time_of: Tensor) -> Tensor:
        """Mean square of what the energy learned below zero, at uniform places of the accepted range.

        Where neither data nor samples come, nothing else holds the energy: hollows there took most of exp(-E)'s
        integral. They may not go below the Gaussian that the energy starts as.
        """
        places = LIMIT * (2.0 * torch.rand(len(time_of), 2, 1, 1, generator=self.random) - 1.0)
        learned = self.energy(sample=places, time=time_of) - self.energy.gaussian(places, time_of)
        return learned.clamp_max(0.0).square().mean()

    def _set_rates(self, iteration: int) -> None:
        """Constant rates, then a linear decay to a fiftieth over the last half."""
        recipe = self.recipe
        factor = min(1.0, max(0.02, 2.0 * (1.0 - iteration / max(1, recipe.iterations))))
        for optimiser, rate in (
            (self.energy_optimiser, recipe.energy_rate),
            (self.generator_optimiser, recipe.generator_rate),
        ):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor


def nearest_neighbour_entropy(samples: Tensor, floor: float) -> Tensor:
    """Eq. 12 without its constant, `d log(2 distance)`: the entropy of each condition's law, (samples, B).

    samples: (samples, B, d), samples >= 2; the distance is to the nearest other sample of the same condition.
    With two samples that is the paper's form; more make it a better estimate of a law with several modes.
    floor: least distance. Below it the gradient, 1/distance, is zero instead of unbounded.
    """
    count, _, dimensions = samples.shape
    between = samples.transpose(0, 1)
    squared = (between[:, :, None] - between[:, None, :]).square().sum(dim=3)
    squared = squared + torch.diag(torch.full((count,), float("inf")))
    nearest = squared.amin(dim=2).clamp_min(floor**2)
    return (0.5 * dimensions * (4.0 * nearest).log()).transpose(0, 1)


def train_checkerboard(output: Path, report: Report, recipe: Recipe | None = None) -> Path:
    """Train `checkerboard-vdrme` and write it below `output`; returns its directory."""
    recipe = recipe or Recipe()
    started = time.perf_counter(), time.process_time()
    trained = Trainer(recipe).run(report)
    directory = output / NAME
    modules = {
        "generator": save_module(directory, "generator", "checkerboard-generator", GENERATOR_CONFIG, trained.generator),
        "energy": save_module(directory, "energy", "checkerboard-energy", ENERGY_CONFIG, trained.energy),
    }
    training = {
        "algorithm": "VDRME Algorithm 1, eq. 12, 15, 18 (with the quadratic), 19; Markov coupling; abar = 1 at t_0",
        "recipe": asdict(recipe),
        "optimiser": "Adam, rates constant and then linear to a fiftieth over the last half",
        "final_losses": trained.losses,
        "seconds": round(time.perf_counter() - started[0], 1),
        "cpu_seconds": round(time.process_time() - started[1], 1),
        **provenance(),
        "dataset": "models.metrics.checkerboard.points",
        "split": {"train_seed": recipe.seed, "calibration_seed": CALIBRATION_SEED, "calibration": CALIBRATION_SIZE},
    }
    save_checkpoint(directory, model_card(modules, training))
    held_out = points(CALIBRATION_SIZE, CALIBRATION_SEED).astype(np.float32)[:, :, None, None]
    calibrate_checkpoint(directory, held_out)
    return directory


def model_card(modules: Mapping[str, ModuleSpec], training: dict[str, Any]) -> ModelCard:
    """The card of `checkerboard-vdrme`, before its energies are calibrated: a point is an image of shape (2, 1, 1)."""
    sample = TensorSpec(name="sample", shape=(2, 1, 1))
    moment, energy = TensorSpec(name="time"), TensorSpec(name="energy")
    return ModelCard(
        name=NAME,
        family="vdrme",
        description="Points of a 2-D checkerboard in 5 steps, with an energy in nats at every noise scale.",
        image=ImageSpec(channels=2, height=1, width=1, low=-LIMIT, high=LIMIT),
        modules=dict(modules),
        networks={
            "generator": NetworkSpec(
                module="generator",
                inputs=(sample, moment, TensorSpec(name="target_time"), TensorSpec(name="latent", shape=(2, 1, 1))),
                outputs=(TensorSpec(name="v", shape=(2, 1, 1)),),
            ),
            "energy": NetworkSpec(module="energy", inputs=(sample, moment), outputs=(energy,)),
            "energy-gradient": NetworkSpec(
                module="energy",
                function="energy_gradient",
                inputs=(sample, moment),
                outputs=(energy, TensorSpec(name="gradient", shape=(2, 1, 1))),
            ),
        },
        sampling=SamplingSpec(
            network="generator",
            prediction="v",
            schedule=SCHEDULE,
            samplers=("vdrme",),
            default_steps=STEPS,
            min_steps=STEPS,
            max_steps=STEPS,
            grids={str(STEPS): GRID},
            clean_end=True,
            clip=False,  # the first steps draw x_i almost afresh, which takes "clean" points far off the board
        ),
        energy=EnergySpec(
            network="energy",
            gradient_network="energy-gradient",
            scales=tuple(
                ScaleSpec(name=f"t{t}", time=float(t), signal=signal, noise=noise)
                for t, (signal, noise) in scales().items()
            ),
        ),
        langevin=LangevinSpec(steps=100, step_size=2e-3, box=True),
        training=training,
    )


def scales() -> dict[int, tuple[float, float]]:
    """Signal and noise amplitudes of every noise scale that the energy was trained at, the clean one first."""
    table = alpha_bar(SCHEDULE)
    noisy = {t: (float(table[t + 1] ** 0.5), float((1.0 - table[t + 1]) ** 0.5)) for t in sorted(GRID[1:-1])}
    return {0: (1.0, 0.0), **noisy}
