"""The latent hierarchy on digits: a 3-layer hierarchical VAE and the energies of its prior (SPEC 5).

Layers are numbered as in the paper: u_1 is nearest to the image, u_L at the top. The image depends on all layers, as in
NVAE, the paper's backbone: what the top says need not pass through the layers below, and those hold what is missing.

Four modules have weights: the hierarchy T, the posterior, the image and the energies f_i. The others are made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch.nn import functional

LOG_STD_BOUND = 3.0


class Hierarchy(nn.Module):
    """`z = T(u)`: `z_L = u_L`, `z_i = mu_i(z_{i+1}) + sigma_i(z_{i+1}) u_i`, invertible layer by layer.

    sizes: dimensions of u_1..u_L. width: of the networks mu_i, sigma_i.
    """

    def __init__(self, sizes: Sequence[int], width: int = 128) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.moments = nn.ModuleList(Perceptron(above, width, 2 * size, blocks=1) for size, above in pairwise(sizes))

    def conditional(self, layer: int, above: Tensor) -> tuple[Tensor, Tensor]:
        """mu_i and sigma_i of layer i = `layer` < L, each (B, sizes[i-1]), given z_{i+1}."""
        mean, log_std = self.moments[layer - 1](above).chunk(2, dim=1)
        return mean, bounded(log_std).exp()

    def forward(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """z_1..z_L of u_1..u_L, each (B, sizes[i-1])."""
        z = [latents[-1]]
        for layer in range(len(self.sizes) - 1, 0, -1):
            mean, std = self.conditional(layer, z[0])
            z.insert(0, mean + std * latents[layer - 1])
        return z

    def inverse(self, z: Sequence[Tensor]) -> list[Tensor]:
        """u_1..u_L of z_1..z_L."""
        latents = [z[-1]]
        for layer in range(len(self.sizes) - 1, 0, -1):
            mean, std = self.conditional(layer, z[layer])
            latents.insert(0, (z[layer - 1] - mean) / std)
        return latents


class Posterior(nn.Module):
    """`q(u_L | x) prod_i q(u_i | x, z_{i+1})`, each a diagonal Gaussian in the units of the prior's noise.

    sizes: dimensions of u_1..u_L. pixels: of an image. width: of the networks. dropout: in training only.
    """

    def __init__(self, sizes: Sequence[int], pixels: int = 64, width: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.features = Perceptron(pixels, width, width, blocks=1, dropout=dropout)
        self.moments = nn.ModuleList(
            Perceptron(width + above, width // 2, 2 * size, blocks=1)
            for size, above in zip(sizes, (*sizes[1:], 0), strict=True)
        )

    def layer(self, layer: int, features: Tensor, above: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and std of u_i, i = `layer`, each (B, sizes[i-1]); above: z_{i+1}, None at the top."""
        given = features if above is None else torch.cat([features, above], dim=1)
        mean, log_std = self.moments[layer - 1](given).chunk(2, dim=1)
        return mean, bounded(log_std).exp()


class Image(nn.Module):
    """The mean of `p(x | z_1..z_L)`: images (B, channels, side, side) in [-1, 1] of z_i, each (B, sizes[i-1])."""

    def __init__(self, sizes: Sequence[int], channels: int = 1, side: int = 8, width: int = 256) -> None:
        super().__init__()
        self.shape = (channels, side, side)
        self.network = Perceptron(sum(sizes), width, channels * side * side)

    def forward(self, z: Sequence[Tensor]) -> Tensor:
        return torch.tanh(self.network(torch.cat(list(z), dim=1))).unflatten(1, self.shape)


class Energies(nn.Module):
    """f_i(z_i, t), one logit a class, of every layer: `F = sum_i f_i` (eq. 14), high where the data are.

    sizes: dimensions of z_1..z_L. classes: number of labels. width: of the networks.
    """

    def __init__(self, sizes: Sequence[int], classes: int = 10, width: int = 128) -> None:
        super().__init__()
        self.frequencies = Timesteps(16, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.layers = nn.ModuleList(Perceptron(size + 16, width, classes) for size in sizes)

    def forward(self, z: Sequence[Tensor], time: Tensor) -> list[Tensor]:
        """f_1..f_L, each (B, classes), of z_1..z_L at diffusion steps `time` (B,)."""
        moment = self.frequencies(time)
        return [layer(torch.cat([value, moment], dim=1)) for layer, value in zip(self.layers, z, strict=True)]


class PriorEnergy(nn.Module):
    """`U(u, t) = -F(T(u), t)`: minus `F_y` for a label, minus its marginal `logsumexp_y F_y` for the null label.

    Its gradients with respect to u_1..u_L are what Langevin dynamics takes at each diffusion step (eq. 13).
    """

    def __init__(self, hierarchy: Hierarchy, energies: Energies) -> None:
        super().__init__()
        self.hierarchy, self.energies = hierarchy, energies

    def forward(self, u1: Tensor, u2: Tensor, u3: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Energies (B,). u1..u3: (B, sizes[i-1]). time: (B,) diffusion step. label: (B,), the null label last."""
        logits = torch.stack(self.energies(self.hierarchy([u1, u2, u3]), time)).sum(dim=0)
        return -chosen(logits, label)


class LayerEnergy(nn.Module):
    """`-logsumexp_y sum_{i > above} f_i(z_i, 0)_y`: the energy of the layers above one, for any label."""

    def __init__(self, hierarchy: Hierarchy, energies: Energies) -> None:
        super().__init__()
        self.hierarchy, self.energies = hierarchy, energies

    def forward(self, u1: Tensor, u2: Tensor, u3: Tensor, above: Tensor) -> Tensor:
        """Energies (B,). u1..u3: (B, sizes[i-1]). above: (B,) float32, 0 for all layers, 2 for the top one alone."""
        values = self.energies(self.hierarchy([u1, u2, u3]), torch.zeros_like(above))
        return -log_marginal(sum_above(values, above)).squeeze(1)


class PriorImage(nn.Module):
    """The image of u_1..u_L."""

    def __init__(self, hierarchy: Hierarchy, image: Image) -> None:
        super().__init__()
        self.hierarchy, self.image = hierarchy, image

    def forward(self, u1: Tensor, u2: Tensor, u3: Tensor) -> Tensor:
        """Images (B, channels, side, side) in [-1, 1] of u1..u3, each (B, sizes[i-1])."""
        image: Tensor = self.image(self.hierarchy([u1, u2, u3]))
        return image


class PosteriorMeans(nn.Module):
    """What the encoder infers of an image: at each layer the mean of u_i given those above."""

    def __init__(self, hierarchy: Hierarchy, posterior: Posterior) -> None:
        super().__init__()
        self.hierarchy, self.posterior = hierarchy, posterior

    def forward(self, sample: Tensor) -> tuple[Tensor, ...]:
        """u_1..u_L, each (B, sizes[i-1]), of images (B, channels, side, side)."""
        return tuple(infer(self.hierarchy, self.posterior, sample).latents)


class Inferred:
    """u_1..u_L, and the moments of the posterior that each came from; every list is in the order of the layers."""

    def __init__(self) -> None:
        self.latents: list[Tensor] = []
        self.means: list[Tensor] = []
        self.stds: list[Tensor] = []


def infer(
    hierarchy: Hierarchy, posterior: Posterior, sample: Tensor, noise: Sequence[Tensor] | None = None
) -> Inferred:
    """A draw of the posterior from the top down, its mean where no `noise` (u_1..u_L, standard normal) is given."""
    features = posterior.features(sample.flatten(1))
    found = Inferred()
    above: Tensor | None = None
    for layer in range(len(hierarchy.sizes), 0, -1):
        mean, std = posterior.layer(layer, features, above)
        latent = mean if noise is None else mean + std * noise[layer - 1]
        if above is None:
            above = latent
        else:
            prior_mean, prior_std = hierarchy.conditional(layer, above)
            above = prior_mean + prior_std * latent
        found.latents.insert(0, latent)
        found.means.insert(0, mean)
        found.stds.insert(0, std)
    return found


def chosen(logits: Tensor, label: Tensor) -> Tensor:
    """(B,): the logit of each row's label, `logsumexp` of all for the null label, whose index is their number.

    A product with one-hot rows and no gather: the gradient of that is a scatter, which costs more when exported.
    """
    values = torch.cat([logits, log_marginal(logits)], dim=1)
    return (values * functional.one_hot(label, values.shape[1]).to(values.dtype)).sum(dim=1)


def sum_above(values: Sequence[Tensor], above: Tensor) -> Tensor:
    """`sum_{i > above} f_i`, (B, classes), of f_1..f_L; above: (B,) float32, each row's number of layers left out."""
    kept = [value * (above < layer).to(value.dtype)[:, None] for layer, value in enumerate(values, start=1)]
    return torch.stack(kept).sum(dim=0)


def bounded(log_std: Tensor) -> Tensor:
    """Within +-LOG_STD_BOUND, and smooth."""
    return LOG_STD_BOUND * torch.tanh(log_std / LOG_STD_BOUND)


class Perceptron(nn.Module):
    """A layer in, residual blocks, a layer out; SiLU throughout: the energies' gradients must be smooth."""

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(width, outputs)

    def forward(self, sample: Tensor) -> Tensor:
        hidden = self.first(sample)
        for block in self.blocks:
            hidden = hidden + block(self.dropout(functional.silu(hidden)))
        result: Tensor = self.last(functional.silu(hidden))
        return result


def log_marginal(logits: Tensor) -> Tensor:
    """`log sum_y exp F_y`, (B, 1), of logits (B, labels).

    The sum is a product with ones: an engine's sum over ten values adds them in an order that depends on where the row
    lies in memory, and a sample would come out another way in other company.
    """
    peak = logits.amax(dim=1, keepdim=True).detach()
    total: Tensor = (logits - peak).exp() @ logits.new_ones(logits.shape[1], 1)
    return peak + total.log()
