"""The latent hierarchy at the paper's size: a 30-layer prior like NVAE's, its energies, and the images that it gives.

papers/latent-hierarchical-ebm uses NVAE (Vahdat and Kautz 2020) with 30 layers as backbone and gives no sizes; those
here are of NVAE's published CIFAR-10 model: one scale of 16x16, 30 groups of 20 latent channels, 128 channels at the
image and 256 where the latents are, 2 cells for each group. Batch norms are what they are at inference, an affine map.

Layers are numbered as in the paper: u_1 is nearest to the image, u_L at the top. The encoder, which training and
out-of-distribution detection need, is not part of this.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn import functional

from .hat_large import ChannelAffine
from .resample import Double


class Prior(nn.Module):
    """`z = T(u)`: `z_L = u_L`, `z_i = mu_i(z_{i+1}, ...) + sigma_i(z_{i+1}, ...) u_i`, and the features for the image.

    layers: L. latent: channels of each z_i. width: of the features. side: of both. cells: residual cells of a group.
    """

    def __init__(self, layers: int, latent: int, width: int, side: int, cells: int = 2) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(width, side, side))
        self.cells = nn.ModuleList(nn.Sequential(*(Cell(width) for _ in range(cells))) for _ in range(layers - 1))
        self.moments = nn.ModuleList(nn.Conv2d(width, 2 * latent, 1) for _ in range(layers - 1))
        self.combine = nn.ModuleList(nn.Conv2d(width + latent, width, 1) for _ in range(layers))

    def forward(self, latents: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """z_1..z_L, each (B, latent, side, side) as u_1..u_L are, and the features (B, width, side, side)."""
        descending = list(reversed(latents))
        z = [descending[0]]
        hidden = self.start + torch.zeros_like(descending[0][:, :1])
        hidden = self.combine[0](torch.cat([hidden, z[0]], dim=1))
        steps = zip(descending[1:], self.cells, self.moments, list(self.combine)[1:], strict=True)
        for noise, cells, moments, combine in steps:
            hidden = cells(hidden)
            mean, log_std = (5.0 * torch.tanh(moments(functional.elu(hidden)) / 5.0)).chunk(2, dim=1)
            z.append(mean + log_std.exp() * noise)
            hidden = combine(torch.cat([hidden, z[-1]], dim=1))
        return z[::-1], hidden


class Energies(nn.Module):
    """f_i(z_i, t) of every layer: a small convolutional network each. The paper does not give theirs.

    layers: L. latent: channels of each z_i. width: of the networks.
    """

    def __init__(self, layers: int, latent: int, width: int = 64) -> None:
        super().__init__()
        self.time_features = Timesteps(32, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(32, width)
        self.first = nn.ModuleList(nn.Conv2d(latent, width, 3, padding=1) for _ in range(layers))
        self.second = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(layers))
        self.third = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(layers))
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(layers))

    def forward(self, z: Sequence[Tensor], time: Tensor) -> Tensor:
        """(B, L): f_1..f_L of the layers z_1..z_L at diffusion steps `time` (B,)."""
        moment = self.time_embedding(self.time_features(time))[:, :, None, None]
        values = []
        for layer, first, second, third, head in zip(z, self.first, self.second, self.third, self.heads, strict=True):
            hidden = functional.silu(first(layer) + moment)
            hidden = functional.silu(third(functional.silu(second(hidden))))
            values.append(head(hidden.mean(dim=(2, 3))))
        return torch.cat(values, dim=1)


class Decoder(nn.Module):
    """From the prior's features to the image: NVAE's cells at the latents' side, doubled, and cells at the image's.

    The mean of the image, through tanh, instead of NVAE's mixture of logistics.

    width: of the features; the image's cells have half of it.
    """

    def __init__(self, width: int, channels: int = 3, cells: int = 2) -> None:
        super().__init__()
        self.doubling = nn.Sequential(Double(width), nn.Conv2d(width, width // 2, 1))
        self.cells = nn.Sequential(*(Cell(width // 2) for _ in range(cells)))
        self.conv_out = nn.Conv2d(width // 2, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Images (B, channels, 2 side, 2 side) in [-1, 1] of features (B, width, side, side)."""
        image: Tensor = torch.tanh(self.conv_out(functional.elu(self.cells(self.doubling(hidden)))))
        return image


class PriorEnergy(nn.Module):
    """`U(u, t) = -F(T(u), t) = -sum_i f_i(z_i, t)`, made of the prior and the energies.

    Its gradients with respect to u_1..u_L are what Langevin dynamics takes at each diffusion step (eq. 9).
    """

    def __init__(self, prior: nn.Module, energies: nn.Module) -> None:
        super().__init__()
        self.prior, self.energies = prior, energies

    def forward(self, time: Tensor, **latents: Tensor) -> Tensor:
        """Energies (B,) of u1..uL, each (B, latent, side, side), at diffusion steps `time` (B,)."""
        z, _ = self.prior([latents[f"u{i + 1}"] for i in range(len(latents))])
        energy: Tensor = -self.energies(z, time).sum(dim=1)
        return energy


class PriorImage(nn.Module):
    """The image of u_1..u_L, made of the prior and the decoder."""

    def __init__(self, prior: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.prior, self.decoder = prior, decoder

    def forward(self, **latents: Tensor) -> Tensor:
        """Images (B, channels, height, width) of u1..uL, each (B, latent, side, side)."""
        _, hidden = self.prior([latents[f"u{i + 1}"] for i in range(len(latents))])
        image: Tensor = self.decoder(hidden)
        return image


class Cell(nn.Module):
    """NVAE's residual cell of the generator: widened, a depthwise 5x5 convolution, narrowed, gated by channel."""

    def __init__(self, channels: int, expansion: int = 6) -> None:
        super().__init__()
        wide, narrow = expansion * channels, max(channels // 16, 4)
        self.widen = nn.Sequential(
            ChannelAffine(channels), nn.Conv2d(channels, wide, 1), ChannelAffine(wide), nn.SiLU()
        )
        self.mix = nn.Sequential(nn.Conv2d(wide, wide, 5, padding=2, groups=wide), ChannelAffine(wide), nn.SiLU())
        self.narrow = nn.Sequential(nn.Conv2d(wide, channels, 1), ChannelAffine(channels))
        # NVAE's squeeze and excitation has a ReLU in between; SiLU here, for the energies' gradients.
        self.gate = nn.Sequential(nn.Linear(channels, narrow), nn.SiLU(), nn.Linear(narrow, channels), nn.Sigmoid())

    def forward(self, hidden: Tensor) -> Tensor:
        change = self.narrow(self.mix(self.widen(hidden)))
        result: Tensor = hidden + 0.1 * change * self.gate(change.mean(dim=(2, 3)))[:, :, None, None]
        return result
