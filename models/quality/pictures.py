"""Pictures of the quality table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from .measure import RowQuality, ScaleQuality

STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}


def draw_frechet(path: Path, rows: Sequence[RowQuality], floor: float, foot: str) -> None:
    """FD-digits of every row, best models of equal cost beside each other: points with the spread over the seeds."""
    models = list(dict.fromkeys(row.row.model for row in rows))
    colours = mpl.colormaps["tab10"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 1.4 + 0.24 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            colour = colours(models.index(row.row.model) % 10)
            axes.errorbar(row.frechet.mean, place, xerr=row.frechet.deviation, fmt="o", color=colour, markersize=5)
            axes.text(row.frechet.mean * 1.06 + row.frechet.deviation, place, f"{row.frechet.mean:.1f}", va="center")
        axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.axvline(floor, color="0.5", linestyle="--", linewidth=1)
        axes.text(floor, -0.55, " test images", color="0.4", va="bottom")
        axes.grid(axis="x", color="0.92")
        axes.set_xlabel("FD-digits (log scale); less is better")
        _write_foot(figure, foot)
        figure.savefig(path, dpi=130)


def _write_foot(figure: Figure, foot: str) -> None:
    """Where the numbers come from, in lines that the narrower picture has room for."""
    lines = [part for line in foot.splitlines() for part in wrap(line, 150, subsequent_indent="    ")]
    figure.supxlabel("\n".join(lines), fontsize=7, color="0.4", x=0.01, ha="left")


def _label(row: RowQuality) -> str:
    return f"{row.row.model}  {row.setting}{', labels' if row.row.labelled else ''}  ({row.nfe} NFE)"


def draw_detection(path: Path, found: Sequence[ScaleQuality], foot: str) -> None:
    """AUROC of every detector on every set, as a table of colours."""
    sets = [result.name for result in found[0].results]
    values = np.array([[result.metrics.auroc for result in entry.results] for entry in found])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 + 0.85 * len(sets), 1.6 + 0.34 * len(found)), layout="constrained")
        axes = figure.subplots()
        axes.imshow(values, cmap="RdYlGn", vmin=0.0, vmax=1.0, aspect="auto")
        for (line, column), value in np.ndenumerate(values):
            axes.text(column, line, f"{value:.2f}", ha="center", va="center")
        axes.set_xticks(range(len(sets)), sets, rotation=30, ha="right")
        axes.set_yticks(range(len(found)), [entry.detector for entry in found])
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_title("AUROC of test digits against each set (1: told apart, 0.5: not at all, 0: the wrong way round)")
        _write_foot(figure, foot)
        figure.savefig(path, dpi=130)
