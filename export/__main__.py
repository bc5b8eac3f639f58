"""`python -m export CHECKPOINT... --repository DIR`: trained checkpoints to bundles that a server loads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.bundle import Bundle, BundleError

from . import ExportError
from .bundle_writer import Outcome, export_checkpoint

USER_ERROR = 2
INTERRUPTED = 130
MEGABYTE = 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for an error that the message explains, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    console, errors = Console(), Console(stderr=True)
    try:
        if options.jobs > 1 and len(options.checkpoint) > 1:
            outcomes = _export_together(options, errors)
        else:
            outcomes = [_export(checkpoint, options, errors) for checkpoint in options.checkpoint]
    except (ExportError, BundleError, OSError) as error:
        errors.print(f"export: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return USER_ERROR
    except KeyboardInterrupt:
        errors.print("export: interrupted, nothing half written")
        return INTERRUPTED
    for outcome in outcomes:
        state = "written" if outcome.fresh else "up to date"
        console.print(f"{outcome.bundle.directory}: {state}", markup=False, highlight=False, soft_wrap=True)
    console.print(_table([outcome.bundle for outcome in outcomes]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("checkpoint", nargs="+", type=Path, help="directory with checkpoint.json and its weights")
    parser.add_argument("--repository", required=True, type=Path, help="model repository: DIR/NAME/VERSION is written")
    parser.add_argument(
        "--version", type=_version, help="version number (default: 1, or the next one if it has changed)"
    )
    parser.add_argument("--force", action="store_true", help="export again, and over another checkpoint's version")
    parser.add_argument(
        "--jobs", type=_jobs, default=1, help="checkpoints at a time, each in a process of its own (default: 1)"
    )
    return parser


def _jobs(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _version(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _export(checkpoint: Path, options: argparse.Namespace, errors: Console) -> Outcome:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(checkpoint.name, total=None)

        def report(network: str, stage: str) -> None:
            progress.update(task, description=f"{checkpoint.name} {network}: {stage}")

        return export_checkpoint(
            checkpoint, options.repository, version=options.version, force=options.force, report=report
        )


def _export_together(options: argparse.Namespace, errors: Console) -> list[Outcome]:
    """Export several checkpoints at a time. The first that fails ends it; those that were written stay."""
    count = len(options.checkpoint)
    export = partial(export_checkpoint, repository=options.repository, version=options.version, force=options.force)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=errors, transient=True) as progress,
        ProcessPoolExecutor(min(options.jobs, count), mp_context=get_context("spawn")) as pool,
    ):
        try:
            return list(progress.track(pool.map(export, options.checkpoint), total=count, description="checkpoints"))
        except BrokenExecutor:
            raise ExportError("a process of the export was ended from outside, perhaps for want of memory") from None


def _table(bundles: Sequence[Bundle]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("network", no_wrap=True, min_width=30)
    for heading in ("MB", "nodes", "error", "bound"):
        table.add_column(heading, justify="right")
    table.add_column("batch invariant", no_wrap=True)
    for bundle in bundles:
        details = bundle.manifest.exported.get("graphs", {})
        for name, graph in bundle.manifest.graphs.items():
            table.add_row(
                f"{bundle.card.name}/{name}",
                f"{details.get(name, {}).get('bytes', 0) / MEGABYTE:.2f}",
                str(details.get(name, {}).get("nodes", "?")),
                f"{graph.worst:.1e}",
                f"{graph.bound:.0e}",
                "yes" if graph.batch_invariant else "no",
            )
    return table


if __name__ == "__main__":
    sys.exit(main())
