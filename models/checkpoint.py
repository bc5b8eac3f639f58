"""Checkpoints: a trained model as it leaves training, `checkpoint.json` and safetensors.

`checkpoint.json` is a `ModelCard` (`models.card`): training writes it, `python -m export` turns it
into a bundle. Weights are float32 or float16 safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bundle import BundleError, decode, encode, sha256_of, verify_file, weight_files
from .card import ModelCard, ModuleSpec

if TYPE_CHECKING:
    import torch

CHECKPOINT = "checkpoint.json"


def save_module(
    directory: Path,
    name: str,
    architecture: str,
    config: dict[str, Any],
    module: torch.nn.Module,
    *,
    half: bool = False,
) -> ModuleSpec:
    """Write `NAME.safetensors` (float32, contiguous) and return the entry that describes it.

    half: write half precision, which loads into a float32 network and takes half the space.
    """
    import torch
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.safetensors"
    precision = torch.float16 if half else torch.float32
    save_file(
        {key: value.detach().to(precision).contiguous().cpu() for key, value in module.state_dict().items()}, path
    )
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return ModuleSpec(
        architecture=architecture, config=config, weights=path.name, sha256=sha256_of(path), parameters=parameters
    )


def composite_module(architecture: str, parts: Mapping[str, str], modules: Mapping[str, ModuleSpec]) -> ModuleSpec:
    """The entry of a module that is made of others: keyword of its class -> name among `modules`."""
    parameters = sum(modules[part].parameters for part in parts.values())
    return ModuleSpec(architecture=architecture, config={}, parameters=parameters, parts=dict(parts))


def save_checkpoint(directory: Path, card: ModelCard) -> None:
    """Write `checkpoint.json`; the modules that it names must have been saved by `save_module`.

    Raises:
        BundleError: a weight file is missing or is not the one described.
    """
    for path, sha256 in weight_files(directory, card).items():
        verify_file(path, sha256)
    encode(directory / CHECKPOINT, card)


def load_checkpoint(directory: Path) -> ModelCard:
    """Read and verify `checkpoint.json` and the hashes of its weight files.

    Raises:
        BundleError: the file or a weight file is missing or wrong; names it.
    """
    card = decode(directory / CHECKPOINT, ModelCard)
    for path, sha256 in weight_files(directory, card).items():
        verify_file(path, sha256)
    return card


def load_modules(directory: Path, specs: Mapping[str, ModuleSpec]) -> dict[str, torch.nn.Module]:
    """Build the torch modules of a card and fill in their weights; eval mode, gradients off.

    Raises:
        BundleError: unknown architecture, or weights that cannot be read or do not fit it; one line.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from .networks import build

    modules: dict[str, torch.nn.Module] = {}
    for name, spec in sorted(specs.items(), key=lambda item: bool(item[1].parts)):  # what others are made of first
        module = build(spec.architecture, spec.config, {keyword: modules[part] for keyword, part in spec.parts.items()})
        if spec.weights is not None:
            path = directory / spec.weights
            try:
                module.load_state_dict(load_file(path))
            except SafetensorError as error:  # a hash says that a file is the one described, not that it is whole
                raise BundleError(f"{path}: is no safetensors file that can be read: {error}") from error
            except RuntimeError as error:  # torch lists what is wrong, an entry a line
                reason = " ".join(str(error).split())
                raise BundleError(f"{path}: does not fit {spec.architecture}: {reason}") from error
        modules[name] = module.eval().requires_grad_(False)
    return modules
