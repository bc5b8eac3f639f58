"""Measure every model of the zoo over several seeds: samples, energies beside baselines, the checkerboard."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..checkpoint import CHECKPOINT
from ..data import DigitsSplit, load_digits_split
from ..machine import ROOT
from ..metrics.baselines import fit_baselines
from ..metrics.checkerboard import board_quality, model_maps
from ..metrics.frechet import FrechetDigits
from ..train.near import NAME as NEAR
from .found import Found, Provenance
from .layers import EXPLANATION as LAYERS
from .layers import has_layers, layers_table, measure_layers
from .measure import (
    BoardDensity,
    Checkpoint,
    diversity,
    measure_detector,
    measure_energies,
    measure_row,
    samples_digits,
)
from .near import explanation as explain_near
from .near import measure_near
from .report import EXPLANATION, auroc_table, board_table, detection_table, near_table, samples_table
from .rows import QualityRow, rows_of

ZOO = ROOT / "models" / "zoo"
POINTS = 10_000
DATA = "quality.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m models quality`."""
    parser.add_argument("checkpoints", nargs="*", type=Path, help="directories; default: the whole zoo")
    parser.add_argument("--count", type=int, default=1000, help="samples for each row and seed, default %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="how many, default %(default)s")
    parser.add_argument("--rows", default="", help="only rows whose setting holds this text; leaves energies out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("out/zoo"), help="folder, default %(default)s")
    parser.add_argument("--update", action="store_true", help="keep what the folder's quality.json has of other models")


def main(options: argparse.Namespace, console: Console) -> int:
    """Measure, and write quality.json, quality.md and the pictures."""
    if options.count < 2 or options.seeds < 1:
        raise SystemExit("--count must be at least 2 and --seeds at least 1")
    torch.set_num_threads(options.threads)
    directories = options.checkpoints or sorted(path.parent for path in ZOO.glob(f"*/{CHECKPOINT}"))
    checkpoints = [Checkpoint(directory) for directory in directories]
    split, metric = load_digits_split(), FrechetDigits.load()
    found = Found(count=options.count, seeds=tuple(range(options.seeds)), floor=metric.floor)
    earlier = _earlier(options.output / DATA, found) if options.update else None
    started = time.monotonic()
    rows = [(c, row) for c in checkpoints if samples_digits(c.card) for row in rows_of(c.card)]
    rows = [(c, row) for c, row in rows if options.rows in row.setting]
    with _progress(console, len(rows)) as progress:
        task = progress.add_task("samples", total=len(rows))
        for checkpoint, row in rows:
            progress.update(task, description=f"{row.model} {row.setting}")
            found.rows.append(measure_row(checkpoint, metric, row, options.count, found.seeds))
            progress.advance(task)
        if not options.rows:
            _measure_energies(found, checkpoints, split, metric, lambda name: progress.update(task, description=name))
            _measure_boards(found, checkpoints)
    found.measured.append(Provenance.here([c.card.name for c in checkpoints], time.monotonic() - started))
    boards = [directory for directory in directories if directory.name in found.boards]
    _write(options.output, found if earlier is None else earlier.updated(found), split, metric, boards)
    console.print(f"wrote {options.output}/quality.md", soft_wrap=True)
    return 0


def _earlier(path: Path, new: Found) -> Found:
    """What was measured before, checked before anything is measured again."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Found)
        found.updated(new)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--update: {path}: {error}") from None
    return found


def _progress(console: Console, rows: int) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def _measure_energies(
    found: Found,
    checkpoints: Sequence[Checkpoint],
    split: DigitsSplit,
    metric: FrechetDigits,
    report: Callable[[str], None],
) -> None:
    test = split.test.images
    for checkpoint in checkpoints:
        if checkpoint.card.name == NEAR:
            found.near += measure_near(checkpoint, split, found.seeds, report)
        elif checkpoint.card.image.shape == test.shape[1:]:
            found.detectors += measure_energies(checkpoint, test, found.seeds, report)
        if has_layers(checkpoint.card):
            found.layers += measure_layers(checkpoint, test, found.seeds, report)
    for name, energy in fit_baselines(split.train.images, metric.logits).items():
        report(name)
        found.detectors.append(measure_detector(name, energy, test, found.seeds))


def _measure_boards(found: Found, checkpoints: Sequence[Checkpoint]) -> None:
    for checkpoint in checkpoints:
        card = checkpoint.card
        if card.image.shape != (2, 1, 1):
            continue
        row = QualityRow(card.name, next(rows_of(card)).options)
        samples = [checkpoint.samples(row, POINTS, seed)[0].reshape(-1, 2) for seed in found.seeds]
        found.boards[card.name] = [board_quality(points) for points in samples]
        energy = checkpoint.modules[card.networks[card.energy.network].module] if card.energy is not None else None
        maps = model_maps(card, energy) if energy is not None else {}
        found.densities[card.name] = [
            BoardDensity(name, scale.log_z, scale.total_variation, scale.divergence) for name, scale in maps.items()
        ]


def _write(output: Path, found: Found, split: DigitsSplit, metric: FrechetDigits, boards: Sequence[Path]) -> None:
    """boards: the checkpoints of points on the plane, which have a picture of their own."""
    from ..metrics.checkerboard_pictures import draw_checkpoint
    from .pictures import draw_detection, draw_frechet

    output.mkdir(parents=True, exist_ok=True)
    (output / DATA).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    train = split.train
    explanation = EXPLANATION.format(
        train=len(train),
        test=len(split.test),
        count=found.count,
        seeds=len(found.seeds),
        floor=found.floor,
        train_diversity=diversity(train.images, None),
        label_diversity=diversity(train.images, train.labels),
        nearest=float(np.median(metric.nearest_distance(split.test.images))),
    )
    parts = [
        "# The models of the zoo",
        found.foot().replace("\n", "\n\n"),
        "## Samples",
        explanation,
        samples_table(found.rows),
    ]
    if found.boards:
        parts.append("## Checkerboard")
        parts += [board_table(name, boards, found.densities[name]) for name, boards in found.boards.items()]
    if found.detectors:
        parts += [
            "## Out-of-distribution detection",
            "Mean AUROC over the seeds; chains that are no default score have one.",
            auroc_table(found.detectors),
        ]
    if found.layers:
        parts += ["### By layer", LAYERS]
        models = dict.fromkeys(entry.model or "" for entry in found.layers)
        parts += [f"{model}:\n\n{layers_table(model, found.detectors, found.layers)}" for model in models]
    if found.near:
        parts += ["### Digits 0-4 against 5-9", explain_near(split), near_table(found.near)]
    if found.detectors:
        parts += [f"### {entry.detector}\n\n{detection_table(entry)}" for entry in found.detectors]
        draw_detection(output / "detection.png", found.detectors, found.foot())
    (output / "quality.md").write_text("\n\n".join(parts) + "\n")
    for directory in boards:
        draw_checkpoint(directory, output / f"{directory.name}.png")
    if found.rows:
        draw_frechet(output / "frechet.png", found.rows, found.floor, found.foot())
