"""The picture of a checkerboard model: its samples after each step, and its densities beside the data's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ..checkpoint import load_checkpoint, load_modules
from ..run import networks_of, run
from ..samplers import SampleOptions, compile_sample
from .checkerboard import HALF, Array, Grid, ScaleMap, board_quality, model_maps, points

DPI = 130
VIEW = 3.0
"""Half of what is shown."""
BOARD = ListedColormap(["#ffffff", "#e3e8ee"])
DOTS, DENSITY, ENERGY = "#0072b2", "magma", "viridis"
STYLE: Any = {"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.linewidth": 0.6}


def draw_checkpoint(checkpoint: Path, path: Path, count: int = 10_000, seed: int = 0, grid: Grid | None = None) -> None:
    """Sample a checkerboard model, map its energies, and draw both.

    Raises:
        BundleError: the checkpoint cannot be read.
        ValueError: it has no energy.
    """
    card = load_checkpoint(checkpoint)
    modules = load_modules(checkpoint, card.modules)
    program = compile_sample(card, SampleOptions())
    networks = networks_of(card, modules)
    trace = run(program, card, networks, seed=seed, count=count, keep_trace=True).trace
    steps = [(f"step {i + 1}", state.flatten(1).double().numpy()) for i, state in enumerate(trace)]
    if card.energy is None:
        raise ValueError(f"{card.name} has no energy")
    grid = grid or Grid()
    maps = model_maps(card, modules[card.networks[card.energy.network].module], grid)
    draw_checkerboard(path, points(count, seed=seed + 1), steps, maps, grid)


def draw_checkerboard(
    path: Path, data: Array, steps: Sequence[tuple[str, Array]], maps: Mapping[str, ScaleMap], grid: Grid
) -> None:
    """Write a PNG of four rows: points; the data's density, exp(-E)/Z and the energy at every noise scale.

    data: points (n, 2) of the data. steps: a title and the samples (n, 2) after each step, as many as there are maps.
    maps: title -> maps of that scale (`energy_maps`), all on `grid`, the noisiest first.

    Raises:
        ValueError: steps and maps differ in number.
    """
    if len(steps) != len(maps):
        raise ValueError(f"steps and maps must be as many, got {len(steps)} and {len(maps)}")
    columns = len(maps)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.25 * (columns + 1), 9.6), layout="constrained")
        axes = figure.subplots(4, columns + 1, squeeze=False, sharex=True, sharey=True)
        for row in axes:
            for panel in row:
                panel.set(xlim=(-VIEW, VIEW), ylim=(-VIEW, VIEW), aspect="equal")
                panel.set_xticks([-HALF, 0, HALF])
                panel.set_yticks([-HALF, 0, HALF])
                panel.tick_params(length=2, labelsize=8)
        for panel, (title, values) in zip(axes[0], [*steps, ("data", data)], strict=True):
            _scatter(panel, values)
            panel.set_title(title)
        for column, (title, scale) in enumerate(maps.items()):
            _densities(figure, list(axes[1:, column]), title, scale, grid)
        names = ("points", "density of the data", "model, exp(-E)/Z", "energy E, nats")
        for row, name in zip(axes, names, strict=True):
            row[0].set_ylabel(name, fontsize=10)
        for panel in axes[1:, -1]:
            panel.set_axis_off()
        _numbers(axes[1, -1], steps[-1][1], maps)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, facecolor="white")


def _scatter(panel: Axes, values: Array) -> None:
    """Points above the board."""
    edges = np.arange(-HALF, HALF + 1)
    squares = np.add.outer(np.arange(2 * HALF), np.arange(2 * HALF)) % 2 == 0
    panel.pcolormesh(edges, edges, squares, cmap=BOARD, vmin=0, vmax=1)
    panel.plot(values[:, 0], values[:, 1], linestyle="none", marker=".", markersize=0.9, alpha=0.6, color=DOTS)


def _densities(figure: Figure, panels: Sequence[Axes], title: str, scale: ScaleMap, grid: Grid) -> None:
    """The three maps of one scale; the densities share their colours."""
    extent = (-grid.reach, grid.reach, -grid.reach, grid.reach)
    common: Any = {"origin": "lower", "extent": extent, "interpolation": "nearest"}
    highest = 1.25 * scale.data.max()
    panels[0].imshow(scale.data, cmap=DENSITY, vmin=0.0, vmax=highest, **common)
    panels[0].set_title(title)
    panels[1].imshow(scale.model, cmap=DENSITY, vmin=0.0, vmax=highest, **common)
    panels[1].set_title(f"KL {scale.divergence:.3f}, log Z {scale.log_z:.2f}", fontsize=8.5)
    lowest = float(np.quantile(scale.energy, 0.001))
    shown = panels[2].imshow(scale.energy, cmap=ENERGY, vmin=lowest, vmax=lowest + 12.0, **common)
    bar = figure.colorbar(shown, ax=panels[2], orientation="horizontal", shrink=0.9, aspect=25, extend="max")
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=7, length=2)


def _numbers(panel: Axes, samples: Array, maps: Mapping[str, ScaleMap]) -> None:
    """What the picture shows, in numbers."""
    quality = board_quality(samples)
    lines = [
        f"{quality.count} samples",
        f"on the support: {quality.support:.3f}",
        f"cells covered: {quality.covered} of 8",
        f"total variation: {quality.total_variation:.3f}",
        "",
        "TV of the densities",
        *(f"  {title}: {scale.total_variation:.3f}" for title, scale in maps.items()),
    ]
    panel.text(0.02, 0.98, "\n".join(lines), transform=panel.transAxes, va="top", fontsize=9)
