"""The bundles that are measured: those of a repository, or made for the measurement."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from models.bundle import Bundle, GraphFile, Manifest, load_bundle
from models.card import ModelCard
from models.checkpoint import load_checkpoint, save_checkpoint

from .cases import EndToEndError, Workload

Precision = Literal["float32", "float16", "bfloat16"]
NO_GRAPH = "none.onnx"
ZOO = Path(__file__).parents[2] / "models" / "zoo"


def find_bundle(repository: Path, model: str) -> Bundle | None:
    """The newest version of a model in a repository, or None.

    Raises:
        BundleError: it is damaged.
    """
    versions = [path for path in (repository / model).glob("[0-9]*") if path.name.isdigit()]
    return load_bundle(max(versions, key=lambda path: int(path.name))) if versions else None


def checkpoint_of(workload: Workload, scratch: Path) -> Path:
    """A checkpoint with the networks that a workload needs, written below `scratch`; returns its directory.

    Raises:
        EndToEndError: there is no such model, or a package is missing that its networks are made of.
    """
    if workload.preset:
        try:
            from models.presets.catalogue import PRESETS
            from models.presets.preset import write

            directory = write(PRESETS[workload.model], scratch)
        except ImportError as error:
            raise EndToEndError(f"{workload.model}: its networks need a package that is missing: {error}") from error
    elif (ZOO / workload.model).is_dir():
        directory = Path(shutil.copytree(ZOO / workload.model, scratch / workload.model))
    else:
        raise EndToEndError(f"{workload.model}: the zoo holds no such model")
    save_checkpoint(directory, only(load_checkpoint(directory), workload.networks))
    return directory


def only(card: ModelCard, names: tuple[str, ...]) -> ModelCard:
    """A card with these networks and their modules alone: what is not run need not be traced, written and loaded."""
    networks = {name: card.networks[name] for name in names}
    wanted = {network.module for network in networks.values()}
    wanted |= {part for name in wanted for part in card.modules[name].parts.values()}
    sampling, energy = card.sampling, card.energy
    return replace(
        card,
        modules={name: module for name, module in card.modules.items() if name in wanted},
        networks=networks,
        sampling=sampling if sampling is not None and sampling.network in networks else None,
        energy=energy
        if energy is not None and {energy.network, energy.gradient_network} <= {*networks, None}
        else None,
        refiners=(),
    )


def export(checkpoint: Path, repository: Path, report: Callable[[str], None]) -> Bundle:
    """Export a checkpoint as `python -m export` does.

    Raises:
        EndToEndError: exporting needs a package that is not installed. ExportError, BundleError: it failed.
    """
    from export import ExportError
    from export.bundle_writer import export_checkpoint

    try:
        outcome = export_checkpoint(
            checkpoint, repository, report=lambda network, stage: report(f"{checkpoint.name} {network}: {stage}")
        )
    except ImportError as error:
        raise ExportError(f"{checkpoint.name}: {error}") from error
    return outcome.bundle


def is_traced(bundle: Bundle) -> bool:
    """Whether a bundle has graphs, or is one of `untraced`."""
    return all(graph.file != NO_GRAPH for graph in bundle.manifest.graphs.values())


def untraced(checkpoint: Path, precision: Precision) -> Bundle:
    """A checkpoint as a bundle for the torch engine, which runs the modules: no graph is written, and none is there.

    So that a machine without an exporter can measure. precision: of all networks, as a manifest gives it.
    """
    card = load_checkpoint(checkpoint)
    nothing = GraphFile(
        file=NO_GRAPH, sha256="0" * 64, precision=precision, opset=0, bound=0.0, parity=(), batch_invariant=False
    )
    graphs = dict.fromkeys(card.networks, nothing)
    manifest = Manifest(card=card, version=1, graphs=graphs, exported={"made by": sys.argv[0]})
    return Bundle(checkpoint, manifest)
