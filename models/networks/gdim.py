"""GDIM's networks (papers/iddim-gdim, tables 6 and 7): a generator with a latent, and a conditional energy."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch.nn import functional

from .unet2d import UNet2D


class Generator(nn.Module):
    """`G(u; x_t, t)`: a denoising U-Net whose group norms also take a latent (adaptive group norm, as in NCSN++).

    The latent is mapped by a small MLP to a style, and each norm scales and shifts its output by a linear function of
    it, `(1 + scale(u)) norm(x) + shift(u)`; time and label enter beside it, as the U-Net's own embedding.
    The parameters of the U-Net keep diffusers' names, so that it can start from a DDPM.

    Without a label (the null label, the last one) it draws one first, from its own estimate of q(label | x_t):
    q(x_0 | x_t) is the mixture of q(x_0 | x_t, label), and a mixture of classes is what a generator trained against
    an energy collapses on. The draw uses the first elements of the latent, one for each label.

    It predicts `v = sqrt(abar) eps - sqrt(1 - abar) x_0`: at t = 1000 that is minus the clean image.

    unet: configuration of the U-Net, with labels. latent: elements of u. style: width of its embedding.
    """

    def __init__(self, unet: Mapping[str, Any], latent: int, style: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.unet = UNet2D(**unet)
        self.labels = int(unet["num_class_embeds"]) - 1
        self.posterior = LabelPosterior(int(unet["in_channels"]), int(unet["sample_size"]), self.labels)
        widths = [latent - self.labels] + [style] * layers
        self.mapping = nn.ModuleList(nn.Linear(narrow, wide) for narrow, wide in pairwise(widths))
        for block in (*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks):
            for resnet in block.resnets:
                resnet.norm1 = AdaptiveGroupNorm(resnet.norm1, style)
                resnet.norm2 = AdaptiveGroupNorm(resnet.norm2, style)

    def forward(self, sample: Tensor, time: Tensor, label: Tensor, latent: Tensor) -> Tensor:
        """Predict v.

        sample: (B, channels, height, width) float32, x_t. time: (B,) float32. label: (B,) int64.
        latent: (B, elements) float32. Returns: v, shaped like `sample`.
        """
        unet = self.unet
        style = latent[:, self.labels :]
        style = style * torch.rsqrt(style.square().mean(dim=1, keepdim=True) + 1e-8)
        for layer in self.mapping:
            style = functional.silu(layer(style))
        label = self.choose(sample, time, label, latent)
        moment = unet.time_embedding(unet.time_proj(time)) + unet.class_embedding(label)
        hidden = unet.conv_in(sample)
        skips = [hidden]
        for block in unet.down_blocks:
            for resnet in block.resnets:
                hidden = styled_residual(resnet, hidden, moment, style)
                skips.append(hidden)
            for downsampler in block.downsamplers or ():
                hidden = downsampler(hidden)
                skips.append(hidden)
        first, *others = unet.mid_block.resnets
        hidden = styled_residual(first, hidden, moment, style)
        for attention, resnet in zip(unet.mid_block.attentions, others, strict=True):
            hidden = styled_residual(resnet, attention(hidden), moment, style)
        for block in unet.up_blocks:
            for resnet in block.resnets:
                hidden = styled_residual(resnet, torch.cat([hidden, skips.pop()], dim=1), moment, style)
            for upsampler in block.upsamplers or ():
                hidden = upsampler(hidden)
        v: Tensor = unet.conv_out(functional.silu(unet.conv_norm_out(hidden)))
        return v

    def choose(self, sample: Tensor, time: Tensor, label: Tensor, latent: Tensor) -> Tensor:
        """The label of each row, (B,) int64: the given one, or a draw from q(label | x_t) for the null label.

        The largest of `log q + Gumbel` is such a draw; `-log(-log Phi(z))` is a Gumbel variable if z is Gaussian.
        """
        uniform = (0.5 + 0.5 * torch.erf(latent[:, : self.labels] * 0.5**0.5)).clamp(1e-6, 1.0 - 1e-6)
        drawn = (self.posterior(sample, time) - torch.log(-torch.log(uniform))).argmax(dim=1)
        return torch.where(label == self.labels, drawn, label)


class LabelPosterior(nn.Module):
    """log q(label | x_t), up to a constant: a small convolutional classifier of noisy images."""

    def __init__(self, channels: int, side: int, labels: int, width: int = 32) -> None:
        super().__init__()
        self.frequencies = Timesteps(32, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.moment = nn.Linear(32, width)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1, stride=2)
        self.head = nn.Linear(width * (side // 2) ** 2, labels)

    def forward(self, sample: Tensor, time: Tensor) -> Tensor:
        """Logits (B, labels) of images (B, channels, side, side) at network times (B,)."""
        moment = functional.silu(self.moment(self.frequencies(time)))
        hidden = functional.silu(self.first(sample) * (1.0 + moment[:, :, None, None]))
        logits: Tensor = self.head(functional.silu(self.second(hidden)).flatten(1))
        return logits


class AdaptiveGroupNorm(nn.GroupNorm):
    """A group norm whose output is scaled and shifted by a linear function of a style vector."""

    def __init__(self, norm: nn.GroupNorm, style: int) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.style = nn.Linear(style, 2 * norm.num_channels)
        nn.init.normal_(self.style.weight, std=0.1)
        nn.init.zeros_(self.style.bias)

    def forward(self, hidden: Tensor, style: Tensor) -> Tensor:  # type: ignore[override]
        """`(1 + scale) norm(hidden) + shift`; hidden: (B, channels, height, width), style: (B, width)."""
        scale, shift = self.style(style)[:, :, None, None].chunk(2, dim=1)
        return (1.0 + scale) * super().forward(hidden) + shift


def styled_residual(resnet: Any, hidden: Tensor, moment: Tensor, style: Tensor) -> Tensor:
    """A residual block of the U-Net with adaptive norms; `moment` is the embedding of time and label."""
    change = resnet.conv1(functional.silu(resnet.norm1(hidden, style)))
    change = change + resnet.time_emb_proj(functional.silu(moment))[:, :, None, None]
    change = resnet.conv2(functional.silu(resnet.norm2(change, style)))
    result: Tensor = change + (hidden if resnet.conv_shortcut is None else resnet.conv_shortcut(hidden))
    return result


class ConditionalEnergy(nn.Module):
    """`U(x_s | x_t) = -h(x_s, x_t, t)`: minus the log ratio of real to generated pairs, not a log density.

    t-GDIM's pairs are (x_0, x_t), that is s = 0; T-GDIM's are (x_s, x_t) on one path
    `x_k = sqrt(abar_k) x_0 + sqrt(1 - abar_k) e`.

    The pair enters as (x_0', e'), the image and the noise on whose path the two would lie, a linear and invertible map:
    at small t the pair itself is two almost equal images, and what tells a wrong x_0 from a right one is small beside
    them; in e' it has unit size. The network is the downward half of a DDPM's U-Net, on whose features it starts, with
    a head of its own. Left out are its attention, which has no second derivative on the CPU (the gradient penalty
    needs it), and the paper's minibatch-std layer, by which the score of an image would depend on its neighbours.
    Activations are smooth. It is trained with and without labels, and serves without.

    unet: configuration of the U-Net, with labels. width: units of the head.
    """

    def __init__(self, unet: Mapping[str, Any], width: int = 64) -> None:
        super().__init__()
        channels = int(unet["in_channels"])
        backbone = UNet2D(**{**unet, "in_channels": 2 * channels})
        self.conv_in = backbone.conv_in
        self.time_proj = backbone.time_proj
        self.time_embedding = backbone.time_embedding
        self.class_embedding = backbone.class_embedding
        self.null = int(unet["num_class_embeds"]) - 1
        self.down_blocks = backbone.down_blocks
        self.mid_resnets = backbone.mid_block.resnets
        widths, side = unet["block_out_channels"], int(unet["sample_size"])
        self.fine = nn.Conv2d(widths[0], width, 1)
        self.coarse = nn.Linear(widths[-1] * (side >> (len(widths) - 1)) ** 2, width)
        self.head = nn.Linear(2 * width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        sample: Tensor,
        latent: Tensor,
        time: Tensor,
        signal: Tensor,
        noise: Tensor,
        target_signal: Tensor | None = None,
        target_noise: Tensor | None = None,
    ) -> Tensor:
        """Energies (B,) of clean images at one draw of their noise, the latent.

        sample, latent: (B, channels, side, side) float32, x_0 and e. time: (B,) network time of x_t.
        signal, noise: (B,) amplitudes of x_0 and e in x_t; target_signal, target_noise: in x_s, by default 1 and 0.
        """
        if target_signal is None or target_noise is None:
            target_signal, target_noise = torch.ones_like(signal), torch.zeros_like(noise)
        state = _wide(signal) * sample + _wide(noise) * latent
        target = _wide(target_signal) * sample + _wide(target_noise) * latent
        label = torch.full_like(time, self.null).long()
        return -self.log_ratio(target, state, time, label, signal, noise, target_signal, target_noise)

    def log_ratio(
        self,
        target: Tensor,
        state: Tensor,
        time: Tensor,
        label: Tensor,
        signal: Tensor,
        noise: Tensor,
        target_signal: Tensor,
        target_noise: Tensor,
    ) -> Tensor:
        """h(x_s, x_t, t), (B,); target, state: (B, channels, side, side), x_s and x_t; label: (B,) int64."""
        determinant = _wide(target_signal * noise - target_noise * signal)
        clean = (_wide(noise) * target - _wide(target_noise) * state) / determinant
        residue = (_wide(target_signal) * state - _wide(signal) * target) / determinant
        moment = self.time_embedding(self.time_proj(time)) + self.class_embedding(label)
        hidden = self.conv_in(torch.cat([clean, residue], dim=1))
        skips = []
        for block in self.down_blocks:
            hidden, states = block(hidden, moment)
            skips.append(states)
        for resnet in self.mid_resnets:
            hidden = resnet(hidden, moment)
        finest = skips[0][len(self.down_blocks[0].resnets) - 1]  # the finest level's output before it is halved
        fine = functional.silu(self.fine(functional.silu(finest))).mean(dim=(2, 3))
        coarse = functional.silu(self.coarse(functional.silu(hidden).flatten(1)))
        ratio: Tensor = self.head(torch.cat([fine, coarse], dim=1)).squeeze(1)
        return ratio


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
