"""Hat Diffusion EBM's networks at the sizes of its data sets, sides 32, 64 and 128.

G_1 and H are SNGAN's without spectral norm, as in the Hat EBM (Hill et al. 2022) that the paper builds on; its own text
gives no sizes. D is a diffusers U-Net. `models.networks.hat` composes them: it takes these in place of its own.

Two differences from Hat EBM's networks: activations are SiLU where SNGAN has ReLU, since the energy's gradient is what
is served, and images are doubled by the binomial filter, which is bilinear but for the border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..card import ScheduleSpec
from ..schedules import alpha_bar
from .resample import Double
from .unet2d import UNet2D


class Denoiser(nn.Module):
    """D, the truncated diffusion distilled to one step, as a U-Net that predicts `v = alpha eps - sigma x_0`.

    unet: its configuration, without labels. truncation: T' of the cosine schedule's 1000 steps.
    """

    def __init__(self, unet: Mapping[str, Any], truncation: int) -> None:
        super().__init__()
        abar = float(alpha_bar(ScheduleSpec(kind="cosine"))[truncation])
        self.truncation, self.alpha, self.sigma = truncation, abar**0.5, (1.0 - abar) ** 0.5
        self.unet = UNet2D(**unet)

    def forward(self, sample: Tensor) -> Tensor:
        """`D(x) = alpha x - sigma v(x, T')`, the clean image of x ~ q_{T'}, (B, channels, side, side)."""
        time = torch.full((sample.shape[0],), self.truncation - 1.0, dtype=sample.dtype, device=sample.device)
        clean: Tensor = self.alpha * sample - self.sigma * self.unet(sample=sample, time=time)
        return clean

    def transition(self, image: Tensor, latent: Tensor) -> Tensor:
        """G_2 of eq. 7 and the Markov transition of eq. 6: `D(alpha x + sigma z)`."""
        clean: Tensor = self(sample=self.alpha * image + self.sigma * latent)
        return clean


class Generator(nn.Module):
    """`G_1(z_1)`: a linear layer to 4x4 pixels, residual blocks that each double the side, tanh.

    widths: channels at 4x4 and after each block. latent: elements of z_1.
    """

    def __init__(self, widths: Sequence[int], channels: int = 3, latent: int = 128, start: int = 4) -> None:
        super().__init__()
        self.start = start
        self.first = nn.Linear(latent, widths[0] * start**2)
        self.blocks = nn.ModuleList(DoublingResidual(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.norm_out = ChannelAffine(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, z1: Tensor) -> Tensor:
        """Images (B, channels, side, side) in [-1, 1] of latents (B, elements)."""
        hidden = self.first(z1).unflatten(1, (-1, self.start, self.start))
        for block in self.blocks:
            hidden = block(hidden)
        image: Tensor = torch.tanh(self.conv_out(functional.silu(self.norm_out(hidden))))
        return image


class Energy(nn.Module):
    """`H(x)`: residual blocks without norms, the mean over pixels, a linear layer without offset.

    widths: channels after each block. halvings: how many of the first blocks halve the side.
    """

    def __init__(self, widths: Sequence[int], halvings: int, channels: int = 3) -> None:
        super().__init__()
        inputs = [channels, *widths]
        self.blocks = nn.ModuleList(
            HalvingResidual(inputs[i], inputs[i + 1], halve=i < halvings, first=i == 0) for i in range(len(widths))
        )
        self.head = nn.Linear(widths[-1], 1, bias=False)

    def forward(self, sample: Tensor) -> Tensor:
        """Energies (B,) of images (B, channels, side, side)."""
        hidden = sample
        for block in self.blocks:
            hidden = block(hidden)
        energy: Tensor = self.head(functional.silu(hidden).mean(dim=(2, 3))).squeeze(1)
        return energy


class ChannelAffine(nn.Module):
    """`scale x + shift` for each channel: a batch norm at inference, its statistics folded in.

    Hat EBM's generator has batch norms that are never updated, which is just this, in training as well.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale + self.shift


class DoublingResidual(nn.Module):
    """SNGAN's generator block: the side is doubled before the first convolution, and on the shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelAffine(inputs), ChannelAffine(outputs)
        self.doubling = Double(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        change = self.conv1(self.doubling(functional.silu(self.norm1(hidden))))
        change = self.conv2(functional.silu(self.norm2(change)))
        result: Tensor = change + self.shortcut(self.doubling(hidden))
        return result


class HalvingResidual(nn.Module):
    """SNGAN's discriminator block: an average pool where it halves, and no activation at the input of the first."""

    def __init__(self, inputs: int, outputs: int, *, halve: bool, first: bool) -> None:
        super().__init__()
        self.activate = nn.Identity() if first else nn.SiLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.halve = nn.AvgPool2d(2) if halve else nn.Identity()
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if halve or inputs != outputs else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        change = self.conv2(functional.silu(self.conv1(self.activate(hidden))))
        result: Tensor = self.halve(change) + self.shortcut(self.halve(hidden))
        return result
