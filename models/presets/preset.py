"""What a preset is, how its parameters are counted, and how it becomes a checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ..card import ImageSpec, ModelCard, ModuleSpec
from ..checkpoint import composite_module, save_checkpoint, save_module
from ..networks import build

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Part:
    """One module with weights: its architecture, its configuration, and what its paper says of its parameters."""

    architecture: str
    config: dict[str, Any]
    stated: str = NOT_STATED


@dataclass(frozen=True)
class Preset:
    """A model at a paper's size.

    paper: whose method it is. parts: modules with weights, by name. composites: modules made of them, name ->
    (architecture, keyword -> part). card: the model card of all modules and a training record.
    """

    name: str
    paper: str
    image: ImageSpec
    parts: Mapping[str, Part]
    card: Callable[[Preset, dict[str, ModuleSpec], dict[str, Any]], ModelCard]
    composites: Mapping[str, tuple[str, dict[str, str]]] = field(default_factory=lambda: MappingProxyType({}))


def parameter_counts(preset: Preset) -> dict[str, int]:
    """Parameters of each part, counted on the meta device: no memory is taken."""
    counts = {}
    with torch.device("meta"):
        for name, part in preset.parts.items():
            counts[name] = sum(parameter.numel() for parameter in build(part.architecture, part.config).parameters())
    return counts


def write(preset: Preset, output: Path, seed: int = 0) -> Path:
    """Write the preset's checkpoint below `output`, with random weights drawn from the seed; returns its directory.

    Each part is saved before the next is built: the largest needs its own memory, and not the model's.
    """
    directory = output / preset.name
    modules = {}
    for index, (name, part) in enumerate(preset.parts.items()):
        torch.manual_seed(1000 * seed + index)
        module = build(part.architecture, part.config)
        fill_zeros(module)
        modules[name] = save_module(directory, name, part.architecture, part.config, module)
        del module
    for name, (architecture, parts) in preset.composites.items():
        modules[name] = composite_module(architecture, parts, modules)
    training = {
        "algorithm": "none: random weights",
        "seed": seed,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "diffusers")}},
    }
    save_checkpoint(directory, preset.card(preset, modules, training))
    return directory


def fill_zeros(module: nn.Module, std: float = 0.02) -> None:
    """Weights that start at zero get small random values.

    Many networks start as a simpler one with a last layer at zero. Untrained, they would give constants,
    and a comparison of outputs would find nothing.
    """
    for parameter in module.parameters():
        if parameter.dim() > 1 and not parameter.detach().any():
            nn.init.normal_(parameter, std=std)
