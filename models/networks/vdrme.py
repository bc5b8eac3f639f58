"""VDRME's networks (papers/vdrme, A.3.1): a denoiser with a noise input, a multiscale energy, an entropy classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch.nn import functional

from .unet2d import UNet2D


class Generator(nn.Module):
    """The generator's network of eq. 15: a denoising U-Net that also takes fresh noise and the time it steps to.

    It predicts `v = sqrt(abar) eps - sqrt(1 - abar) x_0`, which says the same as the paper's eps_phi
    (`eps = sqrt(1 - abar) x + sqrt(abar) v`) but stays well conditioned at t = 999,
    where the clean prediction is 157 times as sensitive to eps as to v.

    The noise goes through a residual block with time and label embeddings (A.3.1) and is then mixed into the image,
    `sqrt(1 - g^2) x + g block(z)`. Beside the image, as channels of its own, the network would learn to subtract it
    again: that is how it came to be ignored in first trials. The gain g is learned; it starts at half the noise that
    the image holds already, so that the U-Net, a DDPM, takes the mixture for a slightly noisier image.

    unet: configuration of the inner U-Net, without labels; label and target time enter as its embedding.
    """

    def __init__(self, unet: Mapping[str, Any], labels: int, noise_width: int = 16) -> None:
        super().__init__()
        channels = int(unet["in_channels"])
        width = 4 * int(unet["block_out_channels"][0])
        self.unet = UNet2D(**{**unet, "class_embed_type": "identity"})
        self.label_embedding = nn.Embedding(labels, width)
        self.target_time = TimeEmbedding(width)
        self.noise_in = nn.Conv2d(channels, noise_width, 3, padding=1)
        self.noise_condition = nn.Linear(width, noise_width)
        self.noise_out = nn.Conv2d(noise_width, channels, 3, padding=1)
        self.noise_gain = nn.Linear(width, channels)
        nn.init.normal_(self.target_time.expand.weight, std=0.01)
        for parameter in (*self.noise_out.parameters(), *self.noise_gain.parameters()):
            nn.init.normal_(parameter, std=0.01) if parameter.dim() > 1 else nn.init.zeros_(parameter)

    def forward(self, sample: Tensor, time: Tensor, target_time: Tensor, label: Tensor, latent: Tensor) -> Tensor:
        """Predict v for the step from `time` to `target_time`.

        sample, latent: (B, channels, height, width) float32. time, target_time: (B,) float32. label: (B,) int64.
        Returns: v, shaped like `sample`.
        """
        condition = self.label_embedding(label) + self.target_time(target_time)
        hidden = functional.silu(self.noise_in(latent) + self.noise_condition(condition)[:, :, None, None])
        noise = latent + self.noise_out(hidden)
        gain = torch.sigmoid(self.noise_gain(condition)) * noise_deviation(time)[:, None]
        gain = gain[:, :, None, None]
        v: Tensor = self.unet(sample=(1.0 - gain * gain).sqrt() * sample + gain * noise, time=time, label=condition)
        return v


def noise_deviation(time: Tensor) -> Tensor:
    """`sqrt(1 - abar)` of the linear schedule at network time `time` (B,), to 1%: beta integrated in closed form."""
    steps = time + 1.0
    return (1.0 - torch.exp(-(1e-4 * steps + (0.02 - 1e-4) / 2000.0 * steps * steps))).sqrt()


class Energy(nn.Module):
    """The multiscale energy E(x, t) in units per pixel, low where the data of that noise scale is.

    The downward half of the denoising U-Net with a head on its features (A.3.1: the same backbone for generator and
    energy, initialised from the DDPM, last layer at zero). Its attention is left out: it has no second derivative on
    the CPU, which the gradient penalty needs. Activations are smooth, since the gradient drives Langevin dynamics.
    It knows no labels: with labels, E learned what tells a class from the others, and the samples of a label
    shrank to its prototype.

    unet: configuration of the U-Net, without labels. width: units of the head.
    """

    def __init__(self, unet: Mapping[str, Any], width: int = 128) -> None:
        super().__init__()
        backbone = UNet2D(**unet)
        self.conv_in = backbone.conv_in
        self.time_proj = backbone.time_proj
        self.time_embedding = backbone.time_embedding
        self.down_blocks = backbone.down_blocks
        self.mid_resnets = backbone.mid_block.resnets
        channels, side = unet["block_out_channels"], int(unet["sample_size"])
        fine, coarse = channels[0] * side**2, channels[-1] * (side >> (len(channels) - 1)) ** 2
        self.fine = nn.Linear(fine, width)
        self.coarse = nn.Linear(coarse, width)
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, sample: Tensor, time: Tensor) -> Tensor:
        """Energies (B,) of images (B, channels, side, side) at the noise scales `time` (B,)."""
        embedding = self.time_embedding(self.time_proj(time))
        hidden = self.conv_in(sample)
        skips = []
        for block in self.down_blocks:
            hidden, states = block(hidden, embedding)
            skips.append(states)
        for resnet in self.mid_resnets:
            hidden = resnet(hidden, embedding)
        fine = skips[0][len(self.down_blocks[0].resnets) - 1]  # the finest level's output before it is halved
        features = self.fine(functional.silu(fine).flatten(1)) + self.coarse(functional.silu(hidden).flatten(1))
        energy: Tensor = self.head(functional.silu(features)).squeeze(1)
        return energy


class EntropyClassifier(nn.Module):
    """T_psi(x_i, z_i | x_{i+1}) of eq. 14: do this image and this noise belong together? Used in training only.

    An inner product of features of (x_i, x_{i+1}) and features of z: what it has to find is a correlation,
    which a network on the concatenated channels learned too slowly to be of use.
    """

    def __init__(self, channels: int = 1, width: int = 32) -> None:
        super().__init__()
        self.time = TimeEmbedding(width)
        self.first = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.third = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(2 * channels, width, 1)
        self.latent = nn.Conv2d(channels, width, 3, padding=1)
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, change: Tensor, latent: Tensor, previous: Tensor, time: Tensor) -> Tensor:
        """Logits (B,).

        change: (B, channels, height, width), x_i without what it inherits from x_{i+1}: given x_{i+1} it says the same.
        latent, previous: shaped alike, z_i and x_{i+1}. time: (B,) network time of x_{i+1}.
        """
        both = torch.cat([change, previous], dim=1)
        hidden = functional.silu(self.first(both) + self.time(time)[:, :, None, None])
        hidden = functional.silu(self.second(hidden))
        features = self.third(hidden) + self.skip(both)
        logits: Tensor = (features * self.latent(latent)).mean(dim=1).sum(dim=(1, 2)) + self.offset
        return logits


class TimeEmbedding(nn.Module):
    """Sinusoidal features of the network time, then two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies = Timesteps(32, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.hidden = nn.Linear(32, width)
        self.expand = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        embedding: Tensor = self.expand(functional.silu(self.hidden(self.frequencies(time))))
        return embedding
