"""Checkpoints that cannot be loaded, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file

from models.bundle import BundleError, sha256_of
from models.card import ModuleSpec
from models.checkpoint import load_checkpoint, load_modules

from ..conftest import ZOO

CHECKPOINT = ZOO / "digits-ddpm"


def with_weights(directory: Path, content: bytes | dict[str, torch.Tensor]) -> tuple[Path, dict[str, ModuleSpec]]:
    """The denoiser of a checkpoint with other weights, and the hash that is theirs."""
    (name, spec), *_ = load_checkpoint(CHECKPOINT).modules.items()
    path = directory / "weights.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file(content, path)
    return path, {name: msgspec.structs.replace(spec, weights=path.name, sha256=sha256_of(path))}


@pytest.mark.parametrize("kept", [0, 7, 20, -1])
def test_a_truncated_weight_file_is_an_error_of_one_line(tmp_path: Path, kept: int):
    """A hash says that a file is the one described, not that it is whole: header and data may be cut."""
    (spec, *_) = load_checkpoint(CHECKPOINT).modules.values()
    path, specs = with_weights(tmp_path, (CHECKPOINT / str(spec.weights)).read_bytes()[:kept])
    with pytest.raises(BundleError) as caught:
        load_modules(tmp_path, specs)
    assert str(caught.value).startswith(f"{path}: is no safetensors file that can be read: ")
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_an_error_of_one_line(tmp_path: Path):
    """The file and the architecture are named; torch's own list has a line for each tensor."""
    path, specs = with_weights(tmp_path, {"other": torch.zeros(2)})
    with pytest.raises(BundleError) as caught:
        load_modules(tmp_path, specs)
    assert str(caught.value).startswith(f"{path}: does not fit ")
    assert "other" in str(caught.value)
    assert "\n" not in str(caught.value)
