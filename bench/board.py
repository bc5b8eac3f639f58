"""The checkerboard in the picture of samples: points that a server drew, and the energy that it gives the plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from server.client import FewstepClient

from .quality import Method, draw

MODEL = "checkerboard-vdrme"
COUNT = 2000
REACH = 3.0
"""Half of what is shown of the plane."""
GRID = 60
"""Places along each side at which the energy is asked for."""
AT_ONCE = 1000
CONTRAST = 12.0
"""Nats above the lowest energy at which colours end."""


@dataclass(frozen=True)
class Board:
    """data, samples: (count, 2) points. energy: (GRID, GRID), rows upwards. note: the numbers. nfe: of a sample."""

    data: NDArray[np.float64]
    samples: NDArray[np.float64]
    energy: NDArray[np.float64]
    note: str
    nfe: int


def ask_board(client: FewstepClient, seed: int) -> Board:
    """Draw points with the model's default sampler, and score the middles of a grid of squares."""
    from models.metrics.checkerboard import CELLS, board_quality, points

    images, nfe = draw(client, Method("VDRME", MODEL), None, COUNT, seed)
    samples = images.reshape(COUNT, 2).astype(np.float64)
    middles = (np.arange(GRID) + 0.5) * (2.0 * REACH / GRID) - REACH
    places = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2, 1, 1).astype(np.float32)
    energy = [
        client.score(MODEL, places[start : start + AT_ONCE]).default.energy for start in range(0, len(places), AT_ONCE)
    ]
    quality = board_quality(samples)
    note = (
        f"{quality.support:.3f} on\nthe board\n\n{quality.covered} of {len(CELLS)}\ncells\n\n"
        f"total\nvariation\n{quality.total_variation:.3f}"
    )
    return Board(points(COUNT, seed), samples, np.concatenate(energy).reshape(GRID, GRID), note, nfe)


def draw_board(figure: Figure, board: Board, left: float, bottom: float, size: float, gap: float) -> None:
    """Three squares side by side: points of the data, points drawn, and the energy. Lengths in pixels of the figure."""
    width, height = figure.get_size_inches() * figure.dpi
    titles = ("points of the data", f"points drawn in {board.nfe} NFE", "energy at the last scale, nats")
    for place, title in enumerate(titles):
        x = left + place * (size + gap)
        axes = figure.add_axes((x / width, bottom / height, size / width, size / height))
        axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal")
        axes.set_title(title, fontsize=9.5)
        axes.grid(visible=False)
        axes.set_xticks([-2, 0, 2])
        axes.set_yticks([-2, 0, 2])
        axes.tick_params(labelsize=7.5, length=2)
        if place < 2:
            _points(axes, board.data if place == 0 else board.samples)
            continue
        lowest = float(np.quantile(board.energy, 0.001))
        extent = (-REACH, REACH, -REACH, REACH)
        shown = axes.imshow(
            board.energy, cmap="viridis", vmin=lowest, vmax=lowest + CONTRAST, origin="lower", extent=extent
        )
        beside = figure.add_axes(((x + size + 8) / width, bottom / height, 10 / width, size / height))
        figure.colorbar(shown, cax=beside, extend="max").ax.tick_params(labelsize=7.5, length=2)


def _points(axes: Axes, values: NDArray[np.float64]) -> None:
    """Points above the cells that hold the data."""
    edges = np.arange(-2, 3)
    squares = np.add.outer(np.arange(4), np.arange(4)) % 2 == 0
    axes.pcolormesh(edges, edges, squares, cmap=ListedColormap(["#ffffff", "#e3e8ee"]), vmin=0, vmax=1)
    axes.plot(values[:, 0], values[:, 1], linestyle="none", marker=".", markersize=1.6, alpha=0.7, color="#0072b2")
