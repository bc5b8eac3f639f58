"""Hat Diffusion EBM's networks: `G(z) = D(alpha G_1(z_1) + sigma z_2)` (eq. 7) and the energy `H(G(z) + y)` (eq. 11).

Three have weights: the proposal generator G_1, the truncated diffusion D and the energy H. The others are made of
them, so that one graph gives an energy, its gradients with respect to y, z_1 and z_2, and the image.
"""

from __future__ import annotations

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch.nn import functional

from ..card import ScheduleSpec
from ..schedules import alpha_bar

SCHEDULE = ScheduleSpec(kind="cosine")


class Denoiser(nn.Module):
    """The truncated diffusion: it predicts `v = alpha_t eps - sigma_t x_0` for times 1 <= t <= T' alone.

    A residual network on 2x2 patches: at 8x8 that is four times as many weights for the same work as one on pixels.
    `forward` is D, one step from T' to the clean image, which is what the network is distilled to.

    truncation: T' of the cosine schedule's 1000 steps.
    """

    def __init__(self, channels: int = 1, width: int = 64, blocks: int = 4, truncation: int = 512) -> None:
        super().__init__()
        abar = float(alpha_bar(SCHEDULE)[truncation])
        self.truncation, self.alpha, self.sigma = truncation, abar**0.5, (1.0 - abar) ** 0.5
        self.frequencies = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = nn.Linear(width, width)
        self.patches = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width, condition=width) for _ in range(blocks))
        self.norm = nn.GroupNorm(8, width)
        self.head = nn.Conv2d(width, 4 * channels, 3, padding=1)

    def velocity(self, sample: Tensor, time: Tensor) -> Tensor:
        """v, shaped like `sample` (B, channels, height, width), at network times t - 1 (B,) float32."""
        condition = functional.silu(self.time(self.frequencies(time)))
        hidden = self.patches(functional.pixel_unshuffle(sample, 2))
        for block in self.blocks:
            hidden = block(hidden, condition)
        v: Tensor = functional.pixel_shuffle(self.head(functional.silu(self.norm(hidden))), 2)
        return v

    def forward(self, sample: Tensor) -> Tensor:
        """`D(x) = alpha x - sigma v(x, T')`, the clean image of x ~ q_{T'}."""
        time = torch.full((sample.shape[0],), self.truncation - 1.0, dtype=sample.dtype, device=sample.device)
        return self.alpha * sample - self.sigma * self.velocity(sample, time)

    def transition(self, image: Tensor, latent: Tensor) -> Tensor:
        """G_2 of eq. 7 and the Markov transition of eq. 6: `D(alpha x + sigma z)`."""
        clean: Tensor = self(sample=self.alpha * image + self.sigma * latent)
        return clean


class ResidualBlock(nn.Module):
    """Group norm, two convolutions and, between them, a shift by the condition."""

    def __init__(self, width: int, condition: int | None = None) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.shift = None if condition is None else nn.Linear(condition, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, hidden: Tensor, condition: Tensor | None = None) -> Tensor:
        inner = self.first(functional.silu(self.norm(hidden)))
        if self.shift is not None:
            inner = inner + self.shift(condition)[:, :, None, None]
        changed: Tensor = hidden + self.second(functional.silu(inner))
        return changed


class Proposal(nn.Module):
    """G_1: a small convolutional generator from a vector z_1 to a first image."""

    def __init__(self, latent: int = 32, channels: int = 1, width: int = 40, side: int = 8) -> None:
        super().__init__()
        self.width, self.side = width, side // 2
        self.expand = nn.Linear(latent, width * self.side**2)
        self.block = ResidualBlock(width)
        self.upsample = nn.Conv2d(width, 4 * 16, 3, padding=1)
        self.head = nn.Conv2d(16, channels, 3, padding=1)
        # Different z_1 must give different images from the start: training has to find them different to keep them so.
        for layer in (self.expand, self.upsample, self.head):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, z1: Tensor) -> Tensor:
        """Images (B, channels, side, side) within [-1, 1] of latents (B, latent)."""
        hidden = self.block(self.expand(z1).reshape(-1, self.width, self.side, self.side))
        hidden = functional.pixel_shuffle(self.upsample(functional.silu(hidden)), 2)
        image: Tensor = self.head(functional.silu(hidden)).tanh()
        return image


class Energy(nn.Module):
    """H: convolutions, then dense layers. Smooth, since its gradient moves images, and without norms, as its scale is
    part of what it says."""

    def __init__(self, channels: int = 1, width: int = 32, dense: int = 128, side: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.third = nn.Linear(2 * width * (side // 2) ** 2, dense)
        self.fourth = nn.Linear(dense, dense)
        self.head = nn.Linear(dense, 1)

    def forward(self, sample: Tensor) -> Tensor:
        """Energies (B,) of images (B, channels, side, side)."""
        hidden = functional.silu(self.second(functional.silu(self.first(sample))))
        hidden = functional.silu(self.third(hidden.flatten(1)))
        hidden = hidden + functional.silu(self.fourth(hidden))
        energy: Tensor = self.head(hidden).squeeze(1)
        return energy


class HatGenerator(nn.Module):
    """`G(z) = D(alpha G_1(z_1) + sigma z_2)`, eq. 7."""

    def __init__(self, proposal: Proposal, denoiser: Denoiser) -> None:
        super().__init__()
        self.proposal, self.denoiser = proposal, denoiser

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        return self.denoiser.transition(self.proposal(z1=z1), z2)


class Composition(nn.Module):
    """`G(z) + y`, the image that latents and residual stand for."""

    def __init__(self, proposal: Proposal, denoiser: Denoiser) -> None:
        super().__init__()
        self.proposal, self.denoiser = proposal, denoiser

    def forward(self, y: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
        return self.denoiser.transition(self.proposal(z1=z1), z2) + y


class JointEnergy(nn.Module):
    """`H(G(z) + y)`, the energy of (y, z_1, z_2) in eq. 11, and the image `G(z) + y` with it."""

    def __init__(self, energy: Energy, proposal: Proposal, denoiser: Denoiser) -> None:
        super().__init__()
        self.energy, self.proposal, self.denoiser = energy, proposal, denoiser

    def forward(self, y: Tensor, z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
        image = self.denoiser.transition(self.proposal(z1=z1), z2) + y
        return self.energy(sample=image), image


class Transition(nn.Module):
    """`x -> D(alpha x + sigma n)`, the Markov transition of Prop. 3.2.1."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, sample: Tensor, latent: Tensor) -> Tensor:
        return self.denoiser.transition(sample, latent)
