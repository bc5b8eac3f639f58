"""t-GDIM's networks at the paper's sizes (papers/iddim-gdim, tables 6 and 7), which follow DDGAN's (Xiao et al. 2022).

The generator is NCSN++ (Song et al. 2021) with adaptive group norms; the energy a residual discriminator on (x_0, x_t).
`models.networks.gdim` holds the smaller networks that the shipped digits models use, with the same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn import functional

from .gdim import AdaptiveGroupNorm
from .resample import Double, Halve, HalvingConvolution

ROOT_HALF = sqrt(0.5)


class Generator(nn.Module):
    """`x_0 = G(u; x_t, t)`: NCSN++ with residual blocks of BigGAN, binomial resampling and a residual input pyramid.

    The latent is normalised and mapped by an MLP to a style, which scales and shifts every group norm of the blocks;
    time enters as in DDPM, added between the convolutions. The output is the clean image, through tanh.

    size: side of the images. width, multipliers: channels of each scale. blocks: residual blocks of each scale.
    attention: side at which there is self-attention. latent, style, mapping: elements of u, width and hidden layers
    of its MLP.
    """

    def __init__(
        self,
        size: int,
        width: int,
        multipliers: Sequence[int],
        channels: int = 3,
        blocks: int = 2,
        attention: int = 16,
        latent: int = 100,
        style: int = 256,
        mapping: int = 4,
    ) -> None:
        super().__init__()
        moment = 4 * width
        self.time_features = Timesteps(width, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.time_embedding = TimestepEmbedding(width, moment)
        widths = [latent] + [style] * (mapping + 1)
        self.mapping = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.down: Any = nn.ModuleList()  # whose items are read as what they are
        skips, current, pyramid = [width], width, channels
        for level, multiplier in enumerate(multipliers):
            stage = DownStage()
            for _ in range(blocks):
                stage.residuals.append(Residual(current, width * multiplier, moment, style))
                current = width * multiplier
                stage.attentions.append(self_attention(current) if size >> level == attention else nn.Identity())
                skips.append(current)
            if level < len(multipliers) - 1:
                stage.halving = Residual(current, current, moment, style, Halve)
                stage.pyramid = HalvingConvolution(pyramid, current)
                pyramid = current
                skips.append(current)
            self.down.append(stage)
        self.middle = nn.ModuleList(Residual(current, current, moment, style) for _ in range(2))
        self.middle_attention = self_attention(current)
        self.up: Any = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            rise = UpStage()
            for _ in range(blocks + 1):
                rise.residuals.append(Residual(current + skips.pop(), width * multiplier, moment, style))
                current = width * multiplier
            rise.attention = self_attention(current) if size >> level == attention else nn.Identity()
            if level:
                rise.doubling = Residual(current, current, moment, style, Double)
            self.up.append(rise)
        self.norm_out = nn.GroupNorm(groups(current), current, eps=1e-6)
        self.conv_out = nn.Conv2d(current, channels, 3, padding=1)

    def forward(self, sample: Tensor, time: Tensor, latent: Tensor) -> Tensor:
        """Predict the clean image.

        sample: (B, channels, size, size) float32, x_t. time: (B,) float32, 0..999. latent: (B, elements) float32.
        Returns: x_0 in [-1, 1], shaped like `sample`.
        """
        moment = self.time_embedding(self.time_features(time))
        style = latent * torch.rsqrt(latent.square().mean(dim=1, keepdim=True) + 1e-8)
        for layer in self.mapping:
            style = functional.silu(layer(style))
        pyramid, hidden = sample, self.conv_in(sample)
        skips = [hidden]
        for stage in self.down:
            for residual, attention in zip(stage.residuals, stage.attentions, strict=True):
                hidden = attention(residual(hidden, moment, style))
                skips.append(hidden)
            if stage.halving is not None:
                pyramid = ROOT_HALF * (stage.pyramid(pyramid) + stage.halving(hidden, moment, style))
                hidden = pyramid
                skips.append(hidden)
        hidden = self.middle_attention(self.middle[0](hidden, moment, style))
        hidden = self.middle[1](hidden, moment, style)
        for stage in self.up:
            for residual in stage.residuals:
                hidden = residual(torch.cat([hidden, skips.pop()], dim=1), moment, style)
            hidden = stage.attention(hidden)
            if stage.doubling is not None:
                hidden = stage.doubling(hidden, moment, style)
        clean: Tensor = torch.tanh(self.conv_out(functional.silu(self.norm_out(hidden))))
        return clean


class DownStage(nn.Module):
    """One scale on the way down: its blocks, and the step to the next scale (none at the last one)."""

    def __init__(self) -> None:
        super().__init__()
        self.residuals = nn.ModuleList()
        self.attentions = nn.ModuleList()
        self.halving: nn.Module | None = None
        self.pyramid: nn.Module | None = None


class UpStage(nn.Module):
    """One scale on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.residuals = nn.ModuleList()
        self.attention: nn.Module = nn.Identity()
        self.doubling: nn.Module | None = None


class Residual(nn.Module):
    """BigGAN's residual block with adaptive group norms; the sum is divided by sqrt(2)."""

    def __init__(
        self, inputs: int, outputs: int, moment: int, style: int, resample: type[Halve] | type[Double] | None = None
    ) -> None:
        super().__init__()
        self.norm1 = AdaptiveGroupNorm(nn.GroupNorm(groups(inputs), inputs, eps=1e-6), style)
        self.norm2 = AdaptiveGroupNorm(nn.GroupNorm(groups(outputs), outputs, eps=1e-6), style)
        self.resample = resample(inputs) if resample is not None else nn.Identity()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.moment = nn.Linear(moment, outputs)
        plain = inputs == outputs and resample is None
        self.shortcut = nn.Identity() if plain else nn.Conv2d(inputs, outputs, 1)

    def forward(self, hidden: Tensor, moment: Tensor, style: Tensor) -> Tensor:
        change = self.conv1(self.resample(functional.silu(self.norm1(hidden, style))))
        change = change + self.moment(functional.silu(moment))[:, :, None, None]
        change = self.conv2(functional.silu(self.norm2(change, style)))
        result: Tensor = ROOT_HALF * (self.shortcut(self.resample(hidden)) + change)
        return result


class ConditionalEnergy(nn.Module):
    """`U(x_0 | x_t) = -h(x_0, x_t, t)`, table 7: minus the log ratio of real to generated pairs.

    A 1x1 convolution on the two images, residual blocks with the time added, the minibatch-std channel, a convolution,
    the sum over all pixels and a linear layer. Activations are SiLU, as energies have gradients; DDGAN has leaky ReLU.

    **Minibatch std.** In training it is the standard deviation over groups of rows, as in StyleGAN2, by which a score
    depends on its neighbours. At inference no row may: there it is the running mean of what training saw, a constant
    channel, as a batch norm's statistics are.

    blocks: (channels, halve) of each residual block.
    """

    deviation: Tensor

    def __init__(
        self,
        blocks: Sequence[tuple[int, bool]],
        channels: int = 3,
        width: int = 128,
        embedding: int = 128,
        group: int = 4,
        momentum: float = 0.01,
    ) -> None:
        super().__init__()
        self.group, self.momentum = group, momentum
        self.time_features = Timesteps(embedding, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.time_embedding = TimestepEmbedding(embedding, embedding)
        self.conv_in = nn.Conv2d(2 * channels, width, 1)
        self.blocks = nn.ModuleList()
        for outputs, halve in blocks:
            self.blocks.append(EnergyResidual(width, outputs, embedding, halve))
            width = outputs
        self.register_buffer("deviation", torch.zeros(()))
        self.conv_out = nn.Conv2d(width + 1, width, 3, padding=1)
        self.head = nn.Linear(width, 1)

    def forward(self, sample: Tensor, latent: Tensor, time: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """Energies (B,) of clean images at one draw of their noise.

        sample, latent: (B, channels, side, side) float32, x_0 and e. time: (B,) network time of x_t.
        signal, noise: (B,), `x_t = signal x_0 + noise e`.
        """
        state = signal[:, None, None, None] * sample + noise[:, None, None, None] * latent
        moment = functional.silu(self.time_embedding(self.time_features(time)))
        hidden = self.conv_in(torch.cat([sample, state], dim=1))
        for block in self.blocks:
            hidden = block(hidden, moment)
        hidden = torch.cat([hidden, self._deviation(hidden) + torch.zeros_like(hidden[:, :1])], dim=1)
        hidden = functional.silu(self.conv_out(hidden)).sum(dim=(2, 3))
        energy: Tensor = -self.head(hidden).squeeze(1)
        return energy

    def _deviation(self, hidden: Tensor) -> Tensor:
        """Std over a group of rows, mean over channels and pixels: (B, 1, 1, 1) in training; a scalar at inference.

        Raises:
            ValueError: in training, a batch that the groups do not divide.
        """
        if not self.training:
            return self.deviation
        group = min(len(hidden), self.group)
        if len(hidden) % group:
            raise ValueError(f"training batches must be multiples of {group} rows, got {len(hidden)}")
        deviation = (hidden.unflatten(0, (group, -1)).var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
        with torch.no_grad():
            self.deviation.lerp_(deviation.mean(), self.momentum)
        return deviation.repeat(group)[:, None, None, None]


class EnergyResidual(nn.Module):
    """A residual block without norms (DDGAN's discriminator)."""

    def __init__(self, inputs: int, outputs: int, moment: int, halve: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.moment = nn.Linear(moment, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.halve_change = Halve(outputs) if halve else nn.Identity()
        self.halve_shortcut = Halve(inputs) if halve else nn.Identity()

    def forward(self, hidden: Tensor, moment: Tensor) -> Tensor:
        change = self.conv1(functional.silu(hidden)) + self.moment(moment)[:, :, None, None]
        change = self.conv2(self.halve_change(functional.silu(change)))
        result: Tensor = ROOT_HALF * (self.shortcut(self.halve_shortcut(hidden)) + change)
        return result


def groups(channels: int) -> int:
    """Groups of a norm: as many as 32, of at least 4 channels; as they divide the channels."""
    most = min(channels // 4, 32)
    return next(count for count in range(most, 0, -1) if channels % count == 0)


def self_attention(channels: int) -> Any:
    """Self-attention over pixels with one head, a norm before and a residual around it."""
    return Attention(
        channels,
        heads=1,
        dim_head=channels,
        rescale_output_factor=sqrt(2.0),
        eps=1e-6,
        norm_num_groups=groups(channels),
        residual_connection=True,
        bias=True,
        upcast_softmax=True,
        _from_deprecated_attn_block=True,
    )
