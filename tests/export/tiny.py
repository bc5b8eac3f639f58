"""Networks of a few thousand weights for export tests, and checkpoints of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.card import ImageSpec, LabelSpec, ModelCard, ModuleSpec, NetworkSpec, TensorSpec
from models.checkpoint import save_checkpoint, save_module
from models.networks import build

IMAGE = (1, 8, 8)
SAMPLE = TensorSpec(name="sample", shape=IMAGE)
TIME = TensorSpec(name="time")
LABEL = TensorSpec(name="label", dtype="int64")
ENERGY = TensorSpec(name="energy")
GRADIENT = TensorSpec(name="gradient", shape=IMAGE)
OUTPUT = TensorSpec(name="output", shape=IMAGE)
UNSAVED = ModuleSpec(architecture="none", config={}, weights="none", sha256="0" * 64, parameters=0)
"""Stands in a card for a module that is only in memory."""


class RichEnergy(nn.Module):
    """Strides, groups, dilation, normalisation, pooling, upsampling, attention and embeddings in one energy."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.strided = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, groups=2)
        self.dilated = nn.Conv2d(2 * width, 2 * width, 3, padding=2, dilation=2, groups=4)
        self.transposed = nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.GroupNorm(4, 2 * width)
        self.time = nn.Linear(16, 2 * width)
        self.label = nn.Embedding(11, 2 * width)
        self.mix = nn.Linear(2 * width, 6 * width)
        self.head = nn.Linear(width, 1)
        self.register_buffer("frequencies", torch.logspace(0, -3, 8))

    def forward(self, sample: Tensor, time: Tensor, label: Tensor) -> Tensor:
        phase = time[:, None] * self.frequencies
        condition = self.time(torch.cat([phase.sin(), phase.cos()], dim=1)) + self.label(label)
        hidden = functional.silu(self.first(sample))
        hidden = functional.gelu(self.strided(hidden)) + condition[:, :, None, None]
        hidden = functional.silu(self.norm(self.dilated(hidden)))
        tokens = hidden.flatten(2).transpose(1, 2)
        query, key, value = (part.unsqueeze(1) for part in self.mix(tokens).chunk(3, dim=2))
        tokens = tokens + functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        hidden = self.transposed(tokens.transpose(1, 2).reshape(hidden.shape))
        hidden = hidden + functional.interpolate(functional.avg_pool2d(hidden, 2), scale_factor=2)
        energy: Tensor = self.head(functional.silu(hidden).mean(dim=(2, 3))).squeeze(1)
        return 10.0 * energy


class Quadratic(nn.Module):
    """U = |weight x|^2 / 2, whose gradient is known: weight^2 x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(IMAGE))

    def forward(self, sample: Tensor) -> Tensor:
        return (self.weight * sample).square().flatten(1).sum(dim=1) / 2


class Denoiser(nn.Module):
    """One convolution each way, with everything that a forward network may take."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.into = nn.Conv2d(2, width, 3, padding=1)
        self.label = nn.Embedding(11, width)
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, sample: Tensor, time: Tensor, label: Tensor, latent: Tensor) -> Tensor:
        frequencies = torch.exp(torch.arange(32) * -0.3)  # a table that is no weight, computed from literals
        phase = (time[:, None] * frequencies).sin().mean(dim=1, keepdim=True)
        condition = self.label(label) + phase
        hidden = self.into(torch.cat([sample, latent], dim=1)) + condition[:, :, None, None]
        output: Tensor = self.out(functional.silu(hidden))
        return output


class Scale(nn.Module):
    """output = weight sample: the cheapest network."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(IMAGE))

    def forward(self, sample: Tensor) -> Tensor:
        return self.weight * sample


class Baked(nn.Module):
    """Holds a tensor that is in no weight file, as a gradient computed while tracing would be."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(IMAGE))
        self.hidden = torch.randn(IMAGE)

    def forward(self, sample: Tensor) -> Tensor:
        return (self.weight * sample * self.hidden).flatten(1).sum(dim=1)


class BatchBranch(Scale):
    """Computes something else for large batches: a trace holds one of the two answers."""

    def forward(self, sample: Tensor) -> Tensor:
        output = super().forward(sample)
        return 2.0 * output if sample.shape[0] > 20 else output


class Company(Scale):
    """A row that depends on the others of its batch."""

    def forward(self, sample: Tensor) -> Tensor:
        return super().forward(sample) + 1e-3 * sample.mean(dim=0, keepdim=True)


class Unsupported(Scale):
    """Uses an operator that ONNX does not have."""

    def forward(self, sample: Tensor) -> Tensor:
        return super().forward(sample) + torch.special.modified_bessel_k0(sample.abs() + 1.0)


class Others(Scale):
    """Takes its inputs as `**others`, as a hierarchy with any number of layers does."""

    def forward(self, **others: Tensor) -> Tensor:
        return self.weight * others["sample"] + others["time"].reshape(-1, 1, 1, 1)


ARCHITECTURES = {
    f"tiny-{name.lower()}": (__name__, name)
    for name in (
        "RichEnergy",
        "Quadratic",
        "Denoiser",
        "Scale",
        "Baked",
        "BatchBranch",
        "Company",
        "Unsupported",
        "Others",
    )
}


def network(name: str, seed: int = 0) -> nn.Module:
    """An untrained network, ready to be exported."""
    torch.manual_seed(seed)
    return build(f"tiny-{name.lower()}", {}).eval().requires_grad_(False)


def energy_spec(module: str, *inputs: TensorSpec) -> NetworkSpec:
    return NetworkSpec(module=module, inputs=(SAMPLE, *inputs), outputs=(ENERGY,))


def gradient_spec(module: str, *inputs: TensorSpec) -> NetworkSpec:
    return NetworkSpec(module=module, function="energy_gradient", inputs=(SAMPLE, *inputs), outputs=(ENERGY, GRADIENT))


def forward_spec(module: str, *inputs: TensorSpec) -> NetworkSpec:
    return NetworkSpec(module=module, inputs=(SAMPLE, *inputs), outputs=(OUTPUT,))


def card(networks: dict[str, NetworkSpec], modules: dict[str, Any], name: str = "tiny") -> ModelCard:
    return ModelCard(
        name=name,
        family="test",
        description="test",
        image=ImageSpec(channels=1, height=8, width=8),
        labels=LabelSpec(count=10, null=10),
        modules=modules,
        networks=networks,
        training={},
    )


def save(directory: Path, networks: dict[str, NetworkSpec], seed: int = 0, name: str = "tiny") -> Path:
    """Write a checkpoint; a module's architecture is its name in `networks`."""
    modules = {}
    for module in {spec.module: None for spec in networks.values()}:
        built = network(module, seed)
        modules[module] = save_module(directory, module, f"tiny-{module}", {}, built)
    save_checkpoint(directory, card(networks, modules, name))
    return directory
