"""No network looks at its tensors' values or makes tensors on the host, so that any may be captured in a CUDA graph.

Torch's meta device has shapes and no values: a network that reads one (`.item()`, a branch) fails there, as does one
that mixes in a tensor of the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.bundle import decode
from models.card import ModelCard, ModuleSpec, NetworkSpec
from models.checkpoint import CHECKPOINT, composite_module
from models.networks import build
from models.presets.catalogue import PRESETS
from models.presets.preset import Preset
from models.run import network_of

from . import tiny

ZOO = Path(__file__).parents[2] / "models" / "zoo"
FROM_HOST = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy)


class NothingFromTheHost(TorchFunctionMode):
    """Refuses what copies the host's values to the device, for which a capture would have to wait."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in FROM_HOST:
            raise AssertionError(f"{function.__name__} in a forward pass")
        return function(*args, **(kwargs or {}))


def assert_can_be_captured(card: ModelCard) -> None:
    modules: dict[str, nn.Module] = {}
    with torch.device("meta"):
        for name, spec in sorted(card.modules.items(), key=lambda item: bool(item[1].parts)):
            parts = {keyword: modules[part] for keyword, part in spec.parts.items()}
            modules[name] = build(spec.architecture, spec.config, parts).eval().requires_grad_(False)
    for name, spec in card.networks.items():
        assert_network_can_be_captured(card, name, spec, modules)


def assert_network_can_be_captured(
    card: ModelCard, name: str, spec: NetworkSpec, modules: Mapping[str, nn.Module]
) -> None:
    inputs = {t.name: torch.empty(3, *t.shape, dtype=getattr(torch, t.dtype), device="meta") for t in spec.inputs}
    with torch.no_grad(), NothingFromTheHost():
        outputs = network_of(card, name, modules)(**inputs)
    for tensor, output in zip(spec.outputs, outputs, strict=True):
        assert (output.device.type, output.shape) == ("meta", (3, *tensor.shape))


@pytest.mark.parametrize("name", sorted(path.name for path in ZOO.iterdir()))
def test_shipped_networks_can_be_captured(name: str):
    """Networks and gradients of the zoo."""
    assert_can_be_captured(decode(ZOO / name / CHECKPOINT, ModelCard))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_networks_of_the_papers_sizes_can_be_captured(preset: Preset):
    """The presets, without their memory."""
    modules = {
        name: ModuleSpec(
            architecture=part.architecture, config=part.config, weights=name, sha256="0" * 64, parameters=0
        )
        for name, part in preset.parts.items()
    }
    for name, (architecture, parts) in preset.composites.items():
        modules[name] = composite_module(architecture, parts, modules)
    assert_can_be_captured(preset.card(preset, modules, {}))


class Branches(nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return sample if sample.sum() > 0 else -sample


class Literal(nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return sample * torch.tensor([0.5] * 8)


class OnTheHost(nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return sample + torch.arange(8)


@pytest.mark.parametrize("module", [Branches(), Literal(), OnTheHost()], ids=lambda module: type(module).__name__)
def test_what_cannot_be_captured_is_found(module: nn.Module):
    """Each of the three ways to break a capture fails here."""
    spec = tiny.forward_spec("m")
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
        assert_network_can_be_captured(tiny.card({"n": spec}, {"m": tiny.UNSAVED}), "n", spec, {"m": module})
