"""VDRME's networks on points of the plane (papers/vdrme, section 4.1): a generator and an energy, both small MLPs.

A point comes as an image of shape (2, 1, 1). Both networks are told where they are in the diffusion by its signal
variance, and start as what is exact for Gaussian data of the same variance and uncorrelated coordinates; what they
learn is the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..card import ScheduleSpec
from ..schedules import alpha_bar
from .vdrme import TimeEmbedding

LEAST_VARIANCE, LEAST_GAIN = 1e-2, 0.1


class Diffusion(nn.Module):
    """Signal variance by network time, and the variance of noised data.

    variance: of each coordinate of the data. schedule: fields of a `ScheduleSpec`.
    """

    signal: Tensor

    def __init__(self, variance: float, schedule: Mapping[str, Any]) -> None:
        super().__init__()
        self.variance = variance
        table = torch.tensor(alpha_bar(ScheduleSpec(**schedule))[1:])
        table[0] = 1.0  # the clean end of the grid (SPEC 3)
        self.register_buffer("signal", table.float())

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Signal variance and variance of the noised data, both (B, 1), at network times (B,)."""
        signal = self.signal[time.long()][:, None]
        return signal, signal * self.variance + 1.0 - signal


class Perceptron(nn.Module):
    """An MLP on features of a point and a condition: residual layers with SiLU, the condition added to each.

    The point enters as itself and as sines and cosines of random directions (Tancik et al. 2020), which let an MLP
    draw sharp edges; the directions are drawn once, from a seed, and are stored with the weights.
    """

    frequencies: Tensor

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, waves: int, wave_std: float) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", wave_std * torch.randn(2, waves, generator=random))
        self.first = nn.Linear(inputs + 2 * waves, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.conditions = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, point: Tensor, others: Tensor, condition: Tensor) -> Tensor:
        """point: (B, 2). others: (B, inputs), plain inputs. condition: (B, width). Returns: (B, outputs)."""
        phase = point @ self.frequencies
        hidden = self.first(torch.cat([others, phase.sin(), phase.cos()], dim=1))
        for layer, shift in zip(self.layers, self.conditions, strict=True):
            hidden = hidden + layer(functional.silu(hidden + shift(condition)))
        outputs: Tensor = self.last(functional.silu(hidden))
        return outputs


class Generator(nn.Module):
    """x_i = G(x_{i+1}, z, t_i), expressed as the prediction v of which the step (eq. 15) makes it.

    With Gaussian data the law of x_i given x_{i+1} is a Gaussian, of mean `m x_{i+1}` and std `s`;
    the network gives `x_i = m x_{i+1} + s (z + f(x_{i+1}, z))`, f starting at zero.

    width, depth: of the MLP. waves, wave_std: number and std of the random directions of its features.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        variance: float,
        schedule: Mapping[str, Any],
        waves: int = 32,
        wave_std: float = 2.0,
    ) -> None:
        super().__init__()
        self.diffusion = Diffusion(variance, schedule)
        self.time = TimeEmbedding(width)
        self.target_time = TimeEmbedding(width)
        self.perceptron = Perceptron(4, 2, width, depth, waves, wave_std)

    def forward(self, sample: Tensor, time: Tensor, target_time: Tensor, latent: Tensor) -> Tensor:
        """Predict v for the step from `time` to `target_time`.

        sample, latent: (B, 2, 1, 1) float32. time, target_time: (B,) float32. Returns: v, shaped like `sample`.
        """
        point, z = sample.flatten(1), latent.flatten(1)
        signal, _ = self.diffusion(time)
        target, spread = self.diffusion(target_time)
        # What is kept from zero is so at any step that there is; elsewhere v means nothing, but stays finite.
        ratio, noise = signal / target, (1.0 - signal).clamp_min(LEAST_VARIANCE)
        added = (1.0 - ratio).clamp_min(LEAST_VARIANCE)
        precision = 1.0 / spread + ratio / added  # of x_i given x_{i+1}
        mean = ratio.sqrt() / added / precision * point
        condition = self.time(time) + self.target_time(target_time)
        scaled = point / spread.sqrt()
        moved = mean + precision.rsqrt() * (z + self.perceptron(point, torch.cat([scaled, z], dim=1), condition))
        # The step is x_i = keep x_{i+1} + gain p with p = sqrt(signal) x_{i+1} - sqrt(1 - signal) v: solved for v.
        keep = ((1.0 - target) / noise).sqrt()
        gain = (target.sqrt() - keep * signal.sqrt()).clamp_min(LEAST_GAIN)
        v = (signal.sqrt() * point - (moved - keep * point) / gain) / noise.sqrt()
        return v.reshape(sample.shape)


class Energy(nn.Module):
    """E(x, t) in nats: `||x||^2 / (2 var_t) + f(x, t)`, so that exp(-E) has an integral whatever f, within reason.

    width, depth, waves, wave_std: of the MLP f.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        variance: float,
        schedule: Mapping[str, Any],
        waves: int = 32,
        wave_std: float = 2.0,
    ) -> None:
        super().__init__()
        self.diffusion = Diffusion(variance, schedule)
        self.time = TimeEmbedding(width)
        self.perceptron = Perceptron(2, 1, width, depth, waves, wave_std)

    def forward(self, sample: Tensor, time: Tensor) -> Tensor:
        """Energies (B,) of points (B, 2, 1, 1) at the noise scales `time` (B,)."""
        point = sample.flatten(1)
        learned = self.perceptron(point, point, self.time(time)).squeeze(1)
        return self.gaussian(sample, time) + learned

    def gaussian(self, sample: Tensor, time: Tensor) -> Tensor:
        """`||x||^2 / (2 var_t)`, (B,)."""
        _, spread = self.diffusion(time)
        energy: Tensor = (sample.flatten(1).square() / (2.0 * spread)).sum(dim=1)
        return energy
