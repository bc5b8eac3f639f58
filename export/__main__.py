"""`python -m export CHECKPOINT... --repository DIR`: trained checkpoints to bundles that a server loads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.bundle import Bundle, BundleError, Precision

from . import ExportError
from .bundle_writer import Outcome, export_checkpoint

if TYPE_CHECKING:
    import torch

USER_ERROR = 2
INTERRUPTED = 130
MEGABYTE = 1e6
TABLE_WIDTH = 120  # whatever the terminal's, which may cut numbers to less than they say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for an error that the message explains, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    console, errors = Console(), Console(stderr=True)
    try:
        device = _gpu() if options.tensorrt else None
        if options.jobs > 1 and len(options.checkpoint) > 1:
            outcomes = _export_together(options, errors)
        else:
            outcomes = [_export(checkpoint, options, errors) for checkpoint in options.checkpoint]
        if device is not None:
            _build_engines([outcome.bundle for outcome in outcomes], device, options.largest_batch, errors)
    except (ExportError, BundleError, OSError) as error:
        errors.print(f"export: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return USER_ERROR
    except KeyboardInterrupt:
        errors.print("export: interrupted, nothing half written")
        return INTERRUPTED
    for outcome in outcomes:
        state = "written" if outcome.fresh else "up to date"
        console.print(f"{outcome.bundle.directory}: {state}", markup=False, highlight=False, soft_wrap=True)
    Console(width=TABLE_WIDTH).print(_table([outcome.bundle for outcome in outcomes]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("checkpoint", nargs="+", type=Path, help="directory with checkpoint.json and its weights")
    parser.add_argument("--repository", required=True, type=Path, help="model repository: DIR/NAME/VERSION is written")
    parser.add_argument("--version", type=_count, help="version number (default: 1, or the next one if it has changed)")
    parser.add_argument("--force", action="store_true", help="export again, and over another checkpoint's version")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="what graphs compute in; norms, softmax and energies stay float32 (default: float32)",
    )
    parser.add_argument(
        "--tensorrt", action="store_true", help="also build TensorRT engines, for the first GPU of this machine"
    )
    parser.add_argument(
        "--largest-batch", type=_count, default=64, help="rows that the engines take, as the server's (default: 64)"
    )
    parser.add_argument(
        "--jobs", type=_count, default=1, help="checkpoints at a time, each in a process of its own (default: 1)"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _export(checkpoint: Path, options: argparse.Namespace, errors: Console) -> Outcome:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(checkpoint.name, total=None)

        def report(network: str, stage: str) -> None:
            progress.update(task, description=f"{checkpoint.name} {network}: {stage}")

        return export_checkpoint(checkpoint, report=report, **_settings(options))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("repository", "version", "force", "precision")}


def _export_together(options: argparse.Namespace, errors: Console) -> list[Outcome]:
    """Export several checkpoints at a time. The first that fails ends it; those that were written stay."""
    count = len(options.checkpoint)
    export = partial(export_checkpoint, **_settings(options))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=errors, transient=True) as progress,
        ProcessPoolExecutor(min(options.jobs, count), mp_context=get_context("spawn")) as pool,
    ):
        try:
            return list(progress.track(pool.map(export, options.checkpoint), total=count, description="checkpoints"))
        except BrokenExecutor:
            raise ExportError("a process of the export was ended from outside, perhaps for want of memory") from None


def _gpu() -> torch.device:
    """The GPU that engines are built for; asked for before anything is exported."""
    try:
        import tensorrt  # noqa: F401  # whether it is there
        import torch
    except ImportError as error:
        raise ExportError(f"--tensorrt needs a package that is not installed: {error}") from None
    if not torch.cuda.is_available():
        raise ExportError("--tensorrt needs a CUDA device, and torch finds none here")
    return torch.device("cuda", torch.cuda.current_device())


def _build_engines(bundles: Sequence[Bundle], device: torch.device, largest_batch: int, errors: Console) -> None:
    from .runtime import EngineError
    from .to_tensorrt import Logger, load_or_build

    for bundle in bundles:
        for network in bundle.card.networks:
            with errors.status(f"{bundle.card.name} {network}: building for TensorRT"):
                try:
                    load_or_build(bundle, network, device, largest_batch, Logger())
                except EngineError as error:
                    raise ExportError(str(error)) from error


def _table(bundles: Sequence[Bundle]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("network", no_wrap=True)
    for heading in ("MB", "nodes", "precision", "error", "bound"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("batch invariant", no_wrap=True)
    for bundle in bundles:
        details = bundle.manifest.exported.get("graphs", {})
        for name, graph in bundle.manifest.graphs.items():
            table.add_row(
                f"{bundle.card.name}/{name}",
                f"{details.get(name, {}).get('bytes', 0) / MEGABYTE:.2f}",
                str(details.get(name, {}).get("nodes", "?")),
                graph.precision,
                f"{graph.worst:.1e}",
                f"{graph.bound:.0e}",
                "yes" if graph.batch_invariant else "no",
            )
    return table


if __name__ == "__main__":
    sys.exit(main())
