"""What the demo prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from .ask import SAMPLES, Line

if TYPE_CHECKING:
    from models.metrics.ood import DetectionResult

    from ..pictures import ScoredSet


def sampler_table(lines: Sequence[Line], floor: float) -> Table:
    """What each sampler costs and gives."""
    table = Table(
        title=f"Samplers (FD-digits of {SAMPLES} samples; the 397 test images: {floor:.1f})", title_justify="left"
    )
    for column in ("model", "sampler"):
        table.add_column(column)
    for column in ("NFE", "p50 ms", "p95 ms", "FD-digits"):
        table.add_column(column, justify="right")
    for line in lines:
        name = line.sampler if line.m is None else f"{line.sampler} m={line.m:g}"
        times = (f"{1e3 * line.latency_p50:.1f}", f"{1e3 * line.latency_p95:.1f}")
        table.add_row(line.model, name, str(line.nfe), *times, f"{line.frechet:.1f}")
    return table


def score_table(
    model: str, results: Sequence[DetectionResult], sets: Sequence[ScoredSet], threshold: float | None
) -> Table:
    """How well each set is told from the digits."""
    table = Table(title=f"Energy of {model}, test digits against", title_justify="left")
    for column in ("category", "set"):
        table.add_column(column)
    for column in ("AUROC", "95% interval", "called out"):
        table.add_column(column, justify="right")
    before = ""
    for result, entry in zip(results, sets, strict=True):
        caught = "-" if threshold is None else f"{100 * np.mean(entry.energy > threshold):.0f}%"
        interval = f"{result.auroc_interval.low:.3f} - {result.auroc_interval.high:.3f}"
        category = result.category if result.category != before else ""
        table.add_row(category, entry.name, f"{result.metrics.auroc:.3f}", interval, caught)
        before = result.category
    return table


def other_scores_table(found: Mapping[str, Sequence[DetectionResult]]) -> Table:
    """AUROC of each model on the sets that all were asked about."""
    table = Table(title="AUROC of the other models' energies, one seed", title_justify="left")
    table.add_column("model")
    for result in next(iter(found.values())):
        table.add_column(result.name, justify="right")
    for model, results in found.items():
        table.add_row(model, *(f"{result.metrics.auroc:.3f}" for result in results))
    return table
