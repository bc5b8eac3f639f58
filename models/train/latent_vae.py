"""The hierarchical VAE below `digits-latent`: three layers of latents with their Gaussian prior.

Its KL term is counted in u, where each layer's prior is N(0, I): `KL(q(u_i | x, z_{i+1}) || N(0, I))` is that of z_i.

With the evidence bound alone one layer is used and the others are not, as one is enough for digits. So two terms are
added: the image must be recognisable from the top layer alone, and from the upper two, with the layers below at their
prior's mean. That makes the top say what there is to see. Some nats are free at each of the lower layers (Kingma et al.
2016), so that they say what is missing: else the top says that too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import LabelledImages
from ..networks.latent import Hierarchy, Image, Inferred, Posterior, infer
from .ddpm import Report, learning_rate_factor

SIZES = (6, 8, 16)
"""Dimensions of u_1, u_2, u_3."""


@dataclass(frozen=True)
class VaeRecipe:
    """Hyperparameters; the defaults are the ones of the shipped checkpoints.

    variance: of p(x | z), a pixel. upper_variances: of the image from u_2 and u_3, and from u_3 alone.
    free_nats: of each layer's divergence, mean over a batch; what is below costs nothing.
    input_noise: std of the noise on what the posterior sees.
    """

    seed: int = 0
    batch: int = 100
    steps: int = 1500
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    variance: float = 0.04
    upper_variances: tuple[float, float] = (0.4, 1.2)
    free_nats: tuple[float, float, float] = (3.0, 3.0, 0.0)
    input_noise: float = 0.15
    dropout: float = 0.0
    width: int = 128
    hierarchy_width: int = 64

    def hierarchy_config(self) -> dict[str, Any]:
        return {"sizes": SIZES, "width": self.hierarchy_width}

    def posterior_config(self) -> dict[str, Any]:
        return {"sizes": SIZES, "width": self.width, "dropout": self.dropout}

    def image_config(self) -> dict[str, Any]:
        return {"sizes": SIZES, "width": self.width}


@dataclass
class Vae:
    """The three trained networks, in eval mode, without gradients, and the losses of the last tenth, in nats."""

    hierarchy: Hierarchy
    posterior: Posterior
    image: Image
    losses: dict[str, float]

    def draw(self, images: Tensor, random: torch.Generator) -> list[Tensor]:
        """One draw of u_1..u_L, each (B, size), from the posterior of images (B, channels, side, side)."""
        with torch.no_grad():
            return infer(self.hierarchy, self.posterior, images, normals(len(images), random)).latents

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """Images (B, channels, side, side) of u_1..u_L."""
        with torch.no_grad():
            image: Tensor = self.image(self.hierarchy(latents))
        return image


def train_vae(data: LabelledImages, recipe: VaeRecipe, report: Report) -> Vae:
    """Maximise the evidence bound with the two terms for the upper layers."""
    torch.manual_seed(recipe.seed)  # initialisation and dropout
    random = torch.Generator().manual_seed(recipe.seed)
    hierarchy = Hierarchy(SIZES, recipe.hierarchy_width)
    posterior = Posterior(SIZES, width=recipe.width, dropout=recipe.dropout)
    image = Image(SIZES, width=recipe.width)
    parameters = [parameter for module in (hierarchy, posterior, image) for parameter in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, recipe.steps))
    images = torch.tensor(data.images)
    free = {f"kl{layer}": nats for layer, nats in enumerate(recipe.free_nats, start=1)}
    history: list[dict[str, float]] = []
    for step in range(recipe.steps):
        clean = images[torch.randint(len(images), (recipe.batch,), generator=random)]
        seen = clean + recipe.input_noise * torch.randn(clean.shape, generator=random)
        found = infer(hierarchy, posterior, seen, normals(recipe.batch, random))
        u1, u2, u3 = found.latents
        one, two = torch.zeros_like(u1), torch.zeros_like(u2)
        terms = {
            "reconstruction": _error(image, hierarchy, [u1, u2, u3], clean) / recipe.variance,
            "from upper two": _error(image, hierarchy, [one, u2, u3], clean) / recipe.upper_variances[0],
            "from top": _error(image, hierarchy, [one, two, u3], clean) / recipe.upper_variances[1],
            **{f"kl{layer}": value for layer, value in enumerate(_divergences(found), start=1)},
        }
        costs = {name: value.clamp(min=free[name]) if name in free else value for name, value in terms.items()}
        loss = torch.stack(list(costs.values())).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 50.0)
        optimiser.step()
        rate.step()
        history.append({name: float(value.detach()) for name, value in terms.items()})
        if step % 20 == 0:
            report(step + 1, recipe.steps, f"bound {np.mean([sum(entry.values()) for entry in history[-50:]]):.2f}")
    tail = history[-max(1, recipe.steps // 10) :]
    losses = {name: round(float(np.mean([entry[name] for entry in tail])), 3) for name in tail[0]}
    for module in (hierarchy, posterior, image):
        module.eval().requires_grad_(False)
    return Vae(hierarchy, posterior, image, losses)


def normals(rows: int, random: torch.Generator) -> list[Tensor]:
    """u_1..u_L from the Gaussian prior, each (rows, size)."""
    return [torch.randn(rows, size, generator=random) for size in SIZES]


def _error(image: Image, hierarchy: Hierarchy, latents: Sequence[Tensor], clean: Tensor) -> Tensor:
    return (image(hierarchy(latents)) - clean).square().flatten(1).sum(dim=1).mean() / 2.0


def _divergences(found: Inferred) -> list[Tensor]:
    """`KL(N(m, s^2) || N(0, I))` of each layer, mean over the rows."""
    return [
        (0.5 * (mean * mean + std * std - 1.0) - std.log()).sum(dim=1).mean()
        for mean, std in zip(found.means, found.stds, strict=True)
    ]
