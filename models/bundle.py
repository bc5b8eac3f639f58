"""The bundle: what is deployed, and the schema of its manifest.

A bundle is a directory `REPOSITORY/NAME/VERSION/` that holds `manifest.json`, one ONNX file per
network (a large one with its weights in a file of their own) and the float32 weights (safetensors) of
the modules they were traced from.
The manifest is validated on load and every file must match its SHA-256, so a truncated copy or an
edited weight file is refused before the server says that it is ready.

What the model is says its card (`models.card`), which checkpoints have, too.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from .card import FileName, ModelCard, Positive, Sha256, Strict

MANIFEST = "manifest.json"
T = TypeVar("T")

Precision = Literal["float32", "float16", "bfloat16"]


class BundleError(ValueError):
    """A bundle or checkpoint that cannot be used; the message names the file and the field."""


class ParityCheck(Strict, frozen=True, kw_only=True):
    """Measured difference between the graph and torch for one output at one batch size and input.

    `error` is max|graph - torch| / max(1, max|torch|).
    """

    output: str
    rows: int
    seed: int
    error: float


class GraphFile(Strict, frozen=True, kw_only=True):
    """The exported form of one network, with what was measured when it was exported.

    `precision` is what its products are computed in, see `export.precision`; inputs and outputs are float32.
    `batch_invariant` says whether the engine returned the same bytes for a row alone and in batches.
    `weights` is the safetensors file that holds a large graph's weights, as ONNX's external data.
    """

    file: FileName
    sha256: Sha256
    weights: FileName | None = None
    weights_sha256: Sha256 | None = None
    precision: Precision = "float32"
    opset: int
    bound: float
    parity: tuple[ParityCheck, ...]
    batch_invariant: bool

    @property
    def worst(self) -> float:
        return max(check.error for check in self.parity)

    def __post_init__(self) -> None:
        if (self.weights is None) != (self.weights_sha256 is None):
            raise ValueError("weights and weights_sha256 go together")


class Manifest(Strict, frozen=True, kw_only=True):
    """`manifest.json`: the model card, one graph per network, and how the export was made."""

    card: ModelCard
    version: Positive
    graphs: dict[str, GraphFile]
    exported: dict[str, Any]

    def __post_init__(self) -> None:
        if set(self.graphs) != set(self.card.networks):
            raise ValueError(f"graphs {sorted(self.graphs)} do not match card.networks {sorted(self.card.networks)}")


class Bundle(Struct, frozen=True):
    """A manifest whose files were found on disk with the recorded hashes."""

    directory: Path
    manifest: Manifest

    @property
    def card(self) -> ModelCard:
        return self.manifest.card

    def graph_path(self, network: str) -> Path:
        return self.directory / self.manifest.graphs[network].file

    def graph_weights_path(self, network: str) -> Path | None:
        """Where the weights of a large graph are; None where the graph holds them itself."""
        weights = self.manifest.graphs[network].weights
        return None if weights is None else self.directory / weights

    def graph_files(self) -> dict[Path, str]:
        """The files of all graphs, and their SHA-256."""
        graphs = self.manifest.graphs.values()
        files = [(graph.file, graph.sha256) for graph in graphs]
        files += [(graph.weights, graph.weights_sha256) for graph in graphs if graph.weights and graph.weights_sha256]
        return {self.directory / name: sha256 for name, sha256 in files}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def decode(path: Path, kind: type[T]) -> T:
    """Read a JSON file into a schema class.

    Raises:
        BundleError: the file is missing, is not JSON, or a field is wrong; names file and field.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise BundleError(f"{path}: {error}") from error


def encode(path: Path, value: Struct) -> None:
    """Write a schema object as indented JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def verify_file(path: Path, sha256: str) -> None:
    """Check that a file is there and is the recorded one.

    Raises:
        BundleError: it is missing or its hash differs.
    """
    if not path.is_file():
        raise BundleError(f"{path}: no such file")
    found = sha256_of(path)
    if found != sha256:
        raise BundleError(f"{path}: SHA-256 is {found}, the manifest says {sha256}")


def weight_files(directory: Path, card: ModelCard) -> dict[Path, str]:
    """The weight files of a card's modules below `directory`, and their SHA-256."""
    return {
        directory / module.weights: module.sha256
        for module in card.modules.values()
        if module.weights is not None and module.sha256 is not None
    }


def load_bundle(directory: Path) -> Bundle:
    """Load a bundle and verify every file of it.

    Raises:
        BundleError: manifest missing or invalid, a file missing or different, or a link that leaves the bundle.
    """
    _confine(directory, directory / MANIFEST)
    manifest = decode(directory / MANIFEST, Manifest)
    bundle = Bundle(directory, manifest)
    for path, sha256 in (bundle.graph_files() | weight_files(directory, manifest.card)).items():
        _confine(directory, path)
        verify_file(path, sha256)
    return bundle


def _confine(directory: Path, path: Path) -> None:
    """Names hold no separator, so only a symbolic link can lead out; those within the bundle are as good as files.

    The bundle itself may be reached through links: they belong to whoever set up the repository.
    """
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory)):
        raise BundleError(f"{path}: is a link that leaves the bundle")
