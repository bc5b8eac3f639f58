"""A start for G_1: the decoder of a small variational autoencoder.

The paper starts G_1 at random. Here, in runs of some hundred iterations, it then never learned to use z_1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ...networks.hat import Proposal
from ..ddpm import learning_rate_factor
from .diffusion import Tell


class Encoder(nn.Module):
    """q(z_1 | x): mean and log standard deviation, each (B, latent)."""

    def __init__(self, latent: int, pixels: int = 64, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2 * latent),
        )  # fmt: skip

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_deviation = self.layers(image).chunk(2, dim=1)
        return mean, log_deviation


def pretrain_proposal(
    images: Tensor,
    proposal: Proposal,
    *,
    steps: int,
    batch: int,
    rate: float,
    deviation: float,
    random: torch.Generator,
    tell: Tell,
) -> None:
    """Fit the decoder N(G_1(z_1), deviation^2) and an encoder, which is then dropped, by the evidence lower bound."""
    encoder = Encoder(proposal.expand.in_features)
    optimiser = torch.optim.Adam([*proposal.parameters(), *encoder.parameters()], rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, steps))
    log: list[tuple[float, float]] = []
    for step in range(steps):
        image = images[torch.randint(len(images), (batch,), generator=random)]
        mean, log_deviation = encoder(image)
        z1 = mean + log_deviation.exp() * torch.randn(mean.shape, generator=random)
        error = (proposal(z1=z1) - image).square().flatten(1).sum(1).mean()
        divergence = 0.5 * (mean.square() + (2.0 * log_deviation).exp() - 2.0 * log_deviation - 1.0).sum(1).mean()
        loss = error / (2.0 * deviation**2) + divergence
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        log.append((float(error.detach()), float(divergence.detach())))
        squared, nats = np.mean(log[-50:], axis=0)
        tell(step + 1, f"squared error {squared:.2f} divergence {nats:.1f}")
