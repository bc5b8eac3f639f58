"""One tiny checkpoint and its bundle, exported once for all tests that only look at them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import export.to_onnx
import models.networks
from export.bundle_writer import export_checkpoint
from models.bundle import Bundle

from . import tiny


@pytest.fixture(scope="session", autouse=True)
def architectures() -> Iterator[None]:
    """The tiny networks under the names that checkpoints use."""
    with pytest.MonkeyPatch.context() as patch:
        for name, place in tiny.ARCHITECTURES.items():
            patch.setitem(models.networks.ARCHITECTURES, name, place)
        yield


@pytest.fixture(scope="session")
def checkpoint(architectures: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gradient of an energy, and a denoiser."""
    networks = {
        "energy-gradient": tiny.gradient_spec("richenergy", tiny.TIME, tiny.LABEL),
        "denoiser": tiny.forward_spec(
            "denoiser", tiny.TIME, tiny.LABEL, tiny.TensorSpec(name="latent", shape=tiny.IMAGE)
        ),
    }
    return tiny.save(tmp_path_factory.mktemp("checkpoint"), networks)


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    outcome = export_checkpoint(checkpoint, tmp_path_factory.mktemp("repository"))
    assert outcome.fresh
    return outcome.bundle


@pytest.fixture(scope="session")
def large_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same, exported as if its graphs were too large for one file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.to_onnx, "INLINE_BYTES", 0)
        return export_checkpoint(checkpoint, tmp_path_factory.mktemp("large")).bundle


@pytest.fixture
def scale_checkpoint(tmp_path: Path) -> Path:
    """The cheapest checkpoint, for tests that write."""
    return tiny.save(tmp_path / "checkpoint", {"scale": tiny.forward_spec("scale")}, name="scale")
