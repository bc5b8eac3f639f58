"""Pictures of measurements: plain values in, PNG files out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from server.client.images import to_pixels

from .board import MODEL, Board, draw_board

if TYPE_CHECKING:
    from .soak_result import Window

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
"""Told apart by people who do not see all colours (Okabe and Ito)."""
STYLE: Any = {  # matplotlib types the keys as a union of hundreds of literals
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
DPI = 130
BOARD_TITLE = f"VDRME on the plane  ({MODEL})"
CELL, GAP = 72, 3
"""Pixels: the largest edge of a sample in a picture, and the white around it."""


def save(figure: Figure, path: Path) -> None:
    """Write a figure, and the folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor="white")


def plain_log(axis: Axis) -> None:
    """Have a logarithmic axis say 1, 2, 5, 10, 20 and so on, in plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


@dataclass(frozen=True)
class SampleRow:
    """One row of the picture of samples. images: (count, channels, height, width) in [low, high]."""

    label: str
    note: str
    images: NDArray[np.float32]


def _strip(images: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """Images side by side as (height, width, 3) pixels, each enlarged by a whole factor to at most `CELL`."""
    pixels = to_pixels(images, low, high).transpose(0, 2, 3, 1)
    scale = max(1, CELL // max(pixels.shape[1:3]))
    pixels = np.broadcast_to(pixels, (*pixels.shape[:3], 3)).repeat(scale, axis=1).repeat(scale, axis=2)
    framed = np.pad(pixels, ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), axis=1)


def draw_samples(
    path: Path, groups: Mapping[str, Sequence[SampleRow]], title: str, foot: str, board: Board | None = None,
    low: float = -1.0, high: float = 1.0,
) -> None:  # fmt: skip
    """Samples by method and number of network evaluations, pixel by pixel; the checkerboard below them.

    groups: one block a method, one row a number of evaluations; all rows show equally many images of one size.
    """
    rows = [row for group in groups.values() for row in group]
    strips = iter([_strip(row.images, low, high) for row in rows])
    row_height, strip_width = _strip(rows[0].images, low, high).shape[:2]
    left, right, head, gap, bottom = 140, 130, 58, 50, 42  # all lengths here are in pixels
    width = left + strip_width + right
    square, apart, board_head = (strip_width - 100) // 3, 50, 84
    board_height = 0 if board is None else board_head + square + 40
    height = head + row_height * len(rows) + gap * len(groups) + board_height + bottom
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        figure.text(16 / width, 1 - 18 / height, title, va="top", fontsize=13, weight="bold")
        figure.text(16 / width, 13 / height, foot, fontsize=7.5, color="0.4")
        y = height - head
        for name, group in groups.items():
            y -= gap
            figure.text(16 / width, (y + 12) / height, name, fontsize=11.5)
            for row in group:
                y -= row_height
                middle = (y + row_height / 2) / height
                figure.text((left - 12) / width, middle, row.label, ha="right", va="center", fontsize=10)
                figure.text((left + strip_width + 12) / width, middle, row.note, va="center", fontsize=10)
                figure.figimage(next(strips), xo=left, yo=y, origin="upper")
        if board is not None:
            figure.text(16 / width, (y - board_head + 46) / height, BOARD_TITLE, fontsize=11.5)
            y -= board_head + square
            draw_board(figure, board, left, y, square, apart)
            figure.text((left - 40) / width, (y + square / 2) / height, board.note, ha="right", va="center", fontsize=9)
        save(figure, path)


@dataclass(frozen=True)
class ScoredSet:
    """Energies of one set of images. note: stands beside its name."""

    name: str
    category: str
    energy: NDArray[np.float64]
    note: str


def draw_scores(
    path: Path, inside: NDArray[np.float64], sets: Sequence[ScoredSet], threshold: float | None,
    false_alarm_rate: float, title: str, foot: str,
) -> None:  # fmt: skip
    """Histograms of energies: the in-distribution images in each panel, behind one other set.

    inside: (n,) energies of the in-distribution images. threshold: above it an image is called out-of-distribution.
    """
    columns = min(4, len(sets))
    rows = -(-len(sets) // columns)
    everything = np.concatenate([inside, *(entry.energy for entry in sets)])
    # The far sets may lie a hundred widths away; what is beyond the bulk is counted in the last bin.
    spread = float(np.percentile(inside, 75) - np.percentile(inside, 25)) or 1.0
    low = max(float(everything.min()), float(inside.min() - 4 * spread))
    high = min(float(everything.max()), float(inside.max() + 12 * spread))
    edges = np.linspace(low, max(high, low + 1e-3 * spread), 61)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.7 * columns + 0.4, 2.1 * rows + 1.2), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for axes in grid.flat[len(sets) :]:
            axes.set_axis_off()
        for axes, entry in zip(grid.flat, sets, strict=False):
            for energies, colour, label in ((inside, COLOURS[0], "in"), (entry.energy, COLOURS[1], "out")):
                clipped = np.clip(energies, low, high)
                share = np.full(len(clipped), 1.0 / len(clipped))
                axes.hist(clipped, edges, weights=share, color=colour, alpha=0.55, label=label)
            if threshold is not None:
                axes.axvline(threshold, color="0.15", linewidth=1.2, linestyle="--")
            axes.set_title(f"{entry.name}  ({entry.category})")
            note = axes.text(0.99, 0.93, entry.note, transform=axes.transAxes, ha="right", va="top", fontsize=9)
            note.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5})
            axes.set_yticks([])
            axes.set_ylim(top=1.3 * axes.get_ylim()[1])  # room for the note above a bar in the last bin
        for axes in grid.flat[: len(sets)][-columns:]:
            axes.set_xlabel("energy" if everything.max() <= high else "energy; the last bin holds all beyond")
            axes.tick_params(labelbottom=True)
        what = f"   - - threshold at false-alarm rate {false_alarm_rate:g}" if threshold is not None else ""
        figure.suptitle(
            f"{title}\nblue: digits of the test split   orange: the set named{what}", x=0.01, ha="left", fontsize=12
        )
        figure.supxlabel(foot, fontsize=8, color="0.4", x=0.01, ha="left")
        save(figure, path)


def draw_quality(
    path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], floor: float, title: str, foot: str
) -> None:
    """FD-digits over network evaluations, one curve a method: (evaluations, distance) pairs in increasing order."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.subplots()
        for (name, points), colour in zip(curves.items(), colours_for(len(curves)), strict=True):
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=5)
        axes.axhline(floor, color="0.4", linestyle="--", linewidth=1)
        axes.text(
            0.005,
            floor,
            " test images",
            transform=axes.get_yaxis_transform(),
            ha="left",
            va="top",
            color="0.4",
            fontsize=9,
        )
        axes.set_yscale("log")
        plain_log(axes.yaxis)
        ticks = sorted({evaluations for points in curves.values() for evaluations, _ in points})
        axes.set(xscale="log", xlabel="network evaluations a sample", ylabel="FD-digits", title=title)
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        figure.legend(loc="outside right upper", frameon=False)
        figure.supxlabel(foot, fontsize=8, color="0.4", x=0.01, ha="left")
        save(figure, path)


def colours_for(count: int) -> Sequence[str]:
    """A colour for each of several curves; of more than there are names for, from dark to light in their order."""
    if count <= len(COLOURS):
        return COLOURS[:count]
    return [to_hex(mpl.colormaps["viridis"](0.95 * i / (count - 1))) for i in range(count)]


def draw_soak(path: Path, windows: Sequence[Window], title: str, foot: str) -> None:
    """What each window of a soak measured, over time; the quarters that are compared are shaded."""
    seconds = [window.start for window in windows]
    panels: tuple[tuple[str, dict[str, list[float]]], ...] = (
        ("memory, MB", {"rss": [window.rss_mb for window in windows]}),
        (
            "threads and descriptors",
            {"threads": [w.threads for w in windows], "descriptors": [w.descriptors for w in windows]},
        ),
        ("latency, ms", {"p50": [1e3 * w.p50 for w in windows], "p99": [1e3 * w.p99 for w in windows]}),
        ("batches", {"rows a batch": [w.batch_rows for w in windows], "busy, %": [100 * w.busy for w in windows]}),
    )
    quarter = max(1, len(windows) // 4)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 7), layout="constrained")
        for axes, (name, curves) in zip(figure.subplots(2, 2, sharex=True).flat, panels, strict=True):
            for (label, values), colour in zip(curves.items(), COLOURS, strict=False):
                axes.plot(seconds, values, "o-", color=colour, label=label, markersize=3, linewidth=1)
            for first, last in ((0, quarter - 1), (len(windows) - quarter, len(windows) - 1)):
                axes.axvspan(seconds[first], seconds[last], color="0.93", zorder=0)
            axes.set_title(name)
            if name.startswith("latency"):
                axes.set_yscale("log")
                plain_log(axes.yaxis)
            else:
                axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
            axes.legend(loc="center right")
        for axes in figure.axes[2:]:
            axes.set_xlabel("s")
        figure.suptitle("\n".join(wrap(title, 130)), x=0.01, ha="left", fontsize=11)
        figure.supxlabel(foot, fontsize=8, color="0.4", x=0.01, ha="left")
        save(figure, path)
