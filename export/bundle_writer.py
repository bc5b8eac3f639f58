"""From a checkpoint directory to `REPOSITORY/NAME/VERSION/`, written whole or not at all.

Importing this module imports neither torch nor an exporter, so that finding a bundle up to date takes
milliseconds.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

import models.networks
from models.bundle import (
    MANIFEST,
    Bundle,
    BundleError,
    Manifest,
    Precision,
    encode,
    load_bundle,
    sha256_of,
    weight_files,
)
from models.card import ModelCard
from models.checkpoint import CHECKPOINT, load_checkpoint, load_modules

from . import ExportError, graph_file, weights_file

if TYPE_CHECKING:
    from .network import ExportedNetwork

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "diffusers")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
Report = Callable[[str, str], None]
"""Called with (network, what is being done with it), for a progress display."""


class Source(NamedTuple):
    """What a bundle is made from: the hash of its checkpoint, and the precision of its graphs."""

    checkpoint: str
    precision: str


@dataclass(frozen=True)
class Outcome:
    """The bundle that now stands in the repository; fresh: it was written by this call."""

    bundle: Bundle
    fresh: bool


def export_checkpoint(
    checkpoint: Path,
    repository: Path,
    *,
    version: int | None = None,
    force: bool = False,
    precision: Precision = "float32",
    report: Report = lambda network, stage: None,
    bounds: Mapping[str, float] | None = None,
) -> Outcome:
    """Export a checkpoint, unless the repository already holds its bundle.

    Without `version` the newest version is kept (and rewritten where the exporter has changed) if it
    was made from this checkpoint in this precision, and the next number is taken if it was not.
    precision: of all its graphs, see `export.precision`.
    bounds: largest parity error by the function of a network, instead of those of `export.parity`.

    Raises:
        BundleError: the checkpoint is missing, invalid or damaged.
        ExportError: it cannot be exported, misses a bound, or `version` holds another checkpoint.
        OSError: the repository cannot be written.
    """
    started = time.perf_counter()
    if not checkpoint.is_dir():
        raise ExportError(f"{checkpoint}: no such directory")
    card = load_checkpoint(checkpoint)
    _check_card(checkpoint, card)
    place = _writable_place(repository)
    source = Source(sha256_of(checkpoint / CHECKPOINT), precision)
    made_from = {"checkpoint": source.checkpoint, "precision": precision, "exporter": exporter_key()}
    version = _choose_version(repository / card.name, source, version, force)
    target = repository / card.name / str(version)
    if not force:
        standing = _up_to_date(target, made_from)
        if standing is not None:
            return Outcome(standing, fresh=False)
    # The name of the directory in the making starts with a dot, so that no server takes it for a model.
    with TemporaryDirectory(prefix=f".{card.name}-", dir=place) as scratch:
        making = Path(scratch) / "bundle"
        making.mkdir()
        networks = _export_networks(checkpoint, card, making, report, bounds, precision)
        manifest = Manifest(
            card=card,
            version=version,
            graphs={name: network.file for name, network in networks.items()},
            exported={
                **made_from,
                "versions": _versions(),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.perf_counter() - started, 1),
                "cpu": _processor(),
                "graphs": {name: _details(network) for name, network in networks.items()},
            },
        )
        return Outcome(_write(making, target, checkpoint, manifest), fresh=True)


def exporter_key() -> str:
    """Changes whenever exporting the same checkpoint could give another bundle: our code and the packages it uses."""
    package = Path(__file__).parent
    sources = [
        *(path for path in package.glob("*.py") if path.name != "to_tensorrt.py"),  # whose engines are no part of it
        package / "runtime" / "onnxruntime.py",
        *Path(models.networks.__file__).parent.glob("*.py"),
    ]
    digest = hashlib.sha256(repr(_versions()).encode())
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = package_version(package)
        except PackageNotFoundError:
            raise ExportError(f"exporting needs the package {package}, which is not installed") from None
    return versions


def _check_card(checkpoint: Path, card: ModelCard) -> None:
    """What can be known before torch is imported."""
    known = models.networks.ARCHITECTURES
    for name, module in card.modules.items():
        if module.architecture not in known:
            raise ExportError(
                f"{checkpoint / CHECKPOINT}: modules[{name!r}].architecture {module.architecture!r} is unknown; "
                f"known: {', '.join(sorted(known))}"
            )
    files = [MANIFEST, *(path.name for path in weight_files(checkpoint, card))]
    for name in card.networks:
        if not FILE_NAME.fullmatch(weights_file(name)):  # the longer of the two
            raise ExportError(f"{checkpoint / CHECKPOINT}: network name {name!r} cannot name a file")
        files += [graph_file(name), weights_file(name)]
    if len(set(files)) != len(files):
        raise ExportError(
            f"{checkpoint / CHECKPOINT}: two files of the bundle would have one name among {sorted(files)}"
        )


def _writable_place(repository: Path) -> Path:
    """The repository, or what there is of the way to it; complains before minutes of work, not after them."""
    standing = repository.absolute()
    while not standing.exists():
        standing = standing.parent
    if not standing.is_dir():
        raise ExportError(f"{standing}: is no directory, so no repository can be there")
    if not os.access(standing, os.W_OK | os.X_OK):
        raise ExportError(f"{standing}: is not writable")
    return standing


def _choose_version(directory: Path, source: Source, wanted: int | None, force: bool) -> int:
    """The version to write, see `export_checkpoint`."""
    standing = {int(path.name): path for path in directory.glob("[1-9]*") if path.name.isdigit()}
    if wanted is None:
        newest = max(standing, default=0)
        return newest if newest and _made_from(standing[newest]) == source else newest + 1
    if wanted in standing and not force and (found := _made_from(standing[wanted])) not in (source, None):
        other = "another checkpoint" if found.checkpoint != source.checkpoint else f"the same one in {found.precision}"
        raise ExportError(f"{standing[wanted]}: this version was made from {other}; give another version, or --force")
    return wanted


def _made_from(directory: Path) -> Source | None:
    """What a version was made from, read leniently: a broken manifest may be replaced."""
    try:
        exported = msgspec.json.decode((directory / MANIFEST).read_bytes())["exported"]
        return Source(str(exported["checkpoint"]), str(exported.get("precision", "float32")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _up_to_date(target: Path, made_from: Mapping[str, str]) -> Bundle | None:
    try:
        bundle = load_bundle(target)
    except (BundleError, NotADirectoryError):
        return None
    exported = bundle.manifest.exported
    return bundle if all(exported.get(key) == value for key, value in made_from.items()) else None


def _export_networks(
    checkpoint: Path,
    card: ModelCard,
    making: Path,
    report: Report,
    bounds: Mapping[str, float] | None,
    precision: Precision,
) -> dict[str, ExportedNetwork]:
    report("", "loading torch")
    from .network import export_network

    modules = load_modules(checkpoint, card.modules)
    return {
        name: export_network(name, card, modules, making, partial(report, name), bounds, precision)
        for name in card.networks
    }


def _details(network: ExportedNetwork) -> dict[str, Any]:
    return {
        "bytes": network.bytes,
        "nodes": network.nodes,
        "repeated_weight_bytes": network.repeated,
        "seconds": round(network.seconds, 1),
        "batch_invariance_threads": list(network.threads),
        "batch_invariance_rows": network.rows,
    }


def _write(making: Path, target: Path, checkpoint: Path, manifest: Manifest) -> Bundle:
    """Complete the directory that holds the graphs, check it as a server would, then rename it to the target."""
    for path in weight_files(checkpoint, manifest.card):
        shutil.copyfile(path, making / path.name)
    encode(making / MANIFEST, manifest)
    load_bundle(making)
    target.parent.mkdir(parents=True, exist_ok=True)
    _replace(making, target, making.with_name("replaced"))
    return Bundle(target, manifest)


def _replace(making: Path, target: Path, aside: Path) -> None:
    """Put a finished directory in place of another one, which goes `aside`: a rename cannot replace files."""
    if not target.exists():
        making.rename(target)
        return
    target.rename(aside)
    try:
        making.rename(target)
    except OSError:
        aside.rename(target)
        raise


def _processor() -> str:
    """The processor's name: the bits of a result belong to its kernels."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
