"""The 2-D checkerboard (VDRME, section 4.1): data, exact densities, and how far samples and energies are from them.

Eight of the sixteen unit squares of [-2, 2]^2, as on a chess board, each with the same uniform density.
Here the truth is known at every noise scale in closed form, and so is log Z by quadrature: what an energy says about
a density can be checked, which no image data set allows.

Points are (n, 2) float64; a model sees a point as an image of shape (2, 1, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr
from torch import nn

from ..card import ModelCard

Array = npt.NDArray[np.float64]

HALF = 2
"""The board is [-HALF, HALF]^2."""
SIDE = 2 * HALF
CELLS = tuple((column, row) for row in range(SIDE) for column in range(SIDE) if (column + row) % 2 == 0)
"""(column, row) of the filled cells, from the lower left one."""
VARIANCE = SIDE**2 / 12.0
"""Of each coordinate: both are uniform on [-HALF, HALF]. Their covariance is 1/4."""


def points(count: int, seed: int) -> Array:
    """`count` points of the data, (count, 2); seeded, the same on every machine."""
    random = np.random.Generator(np.random.PCG64(seed))
    corners = np.array(CELLS, dtype=np.float64)[random.integers(len(CELLS), size=count)]
    return corners + random.random((count, 2)) - HALF


def cell_of(samples: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """(n,): the index in `CELLS` of the cell that each point is in; -1 off the support.

    Raises:
        ValueError: not (n, 2), or not finite.
    """
    values = _checked(samples)
    square = np.floor(values + HALF)
    column, row = square[:, 0], square[:, 1]
    inside = ((square >= 0) & (square < SIDE)).all(axis=1) & ((column + row) % 2 == 0)
    index = row * (SIDE // 2) + column // 2
    return np.where(inside, index, -1).astype(np.int64)


@dataclass(frozen=True)
class BoardQuality:
    """How well samples cover the board.

    support: fraction of the samples on the support. covered: cells with at least a tenth of their share.
    total_variation: between the samples' cells and the uniform law over the 8, "off the support" being a ninth
    outcome that the data never take; 0..1.
    """

    count: int
    support: float
    covered: int
    total_variation: float


def board_quality(samples: npt.ArrayLike) -> BoardQuality:
    """Quality of samples (n, 2), n >= 1.

    Raises:
        ValueError: not (n, 2), empty, or not finite.
    """
    cells = cell_of(samples)
    if len(cells) == 0:
        raise ValueError("samples must hold at least one point")
    share = np.bincount(cells[cells >= 0], minlength=len(CELLS)) / len(cells)
    support = float(share.sum())
    uniform = 1.0 / len(CELLS)
    return BoardQuality(
        count=len(cells),
        support=support,
        covered=int((share >= 0.1 * uniform).sum()),
        total_variation=float((np.abs(share - uniform).sum() + 1.0 - support) / 2.0),
    )


def density(samples: npt.ArrayLike, signal: float = 1.0, noise: float = 0.0) -> Array:
    """(n,): exact density of `signal * x + noise * n`, x of the data, n standard normal.

    A filled cell contributes, in each coordinate, a unit interval times `signal`, blurred by a Gaussian.
    """
    values = _checked(samples)
    if noise == 0.0:
        return (cell_of(values / signal) >= 0) / (len(CELLS) * signal**2)
    edges = signal * (np.arange(SIDE + 1) - HALF)
    below = ndtr((edges - values[:, :, None]) / noise)
    interval = np.diff(below, axis=2) / signal  # (n, coordinate, column or row)
    chosen = np.array(CELLS)
    return np.asarray((interval[:, 0, chosen[:, 0]] * interval[:, 1, chosen[:, 1]]).mean(axis=1))


@dataclass(frozen=True)
class Grid:
    """A square grid of midpoints for quadrature, over [-reach, reach]^2. side: midpoints in each direction."""

    reach: float = 4.0
    side: int = 400

    @property
    def area(self) -> float:
        """Of one of its squares."""
        return (2.0 * self.reach / self.side) ** 2

    def points(self) -> Array:
        """(side^2, 2), row by row from the lower left: reshaped to (side, side) it is indexed [y, x]."""
        axis = (np.arange(self.side) + 0.5) * (2.0 * self.reach / self.side) - self.reach
        x, y = np.meshgrid(axis, axis)
        return np.stack([x.ravel(), y.ravel()], axis=1)


@dataclass(frozen=True)
class ScaleMap:
    """One noise scale on a grid, everything (side, side) indexed [y, x].

    energy: E. log_z: log of the integral of exp(-E) over the grid. model: exp(-E)/Z. data: the exact density.
    total_variation: between the two densities. divergence: Kullback-Leibler divergence of the model from the data,
    in nats: what maximum likelihood minimises, its lower bound being 0.
    """

    energy: Array
    log_z: float
    model: Array
    data: Array
    total_variation: float
    divergence: float


def energy_maps(
    energy: Callable[[Array, float], Array], scales: Mapping[float, tuple[float, float]], grid: Grid | None = None
) -> dict[float, ScaleMap]:
    """Energies, log Z by quadrature (midpoint rule) and densities at every scale.

    energy: of points (n, 2) at a network time, in units of the log density. scales: time -> (signal, noise).
    """
    grid = grid or Grid()
    places = grid.points()
    maps = {}
    for time, (signal, noise) in scales.items():
        values = energy(places, time).astype(np.float64)
        lowest = values.min()
        log_z = float(np.log(np.exp(lowest - values).sum() * grid.area) - lowest)
        truth = density(places, signal, noise)
        log_model = -values - log_z
        model = np.exp(log_model)
        known = truth > 0.0
        divergence = (truth[known] * (np.log(truth[known]) - log_model[known])).sum() * grid.area
        shape = (grid.side, grid.side)
        maps[time] = ScaleMap(
            energy=values.reshape(shape),
            log_z=log_z,
            model=model.reshape(shape),
            data=truth.reshape(shape),
            total_variation=float(np.abs(model - truth).sum() * grid.area / 2.0),
            divergence=float(divergence),
        )
    return maps


def model_maps(card: ModelCard, energy: nn.Module, grid: Grid | None = None) -> dict[str, ScaleMap]:
    """`energy_maps` of a model with an energy over points, by the names of its scales, the noisiest first.

    energy: the module of the card's energy network.

    Raises:
        ValueError: the model has no energy.
    """
    if card.energy is None:
        raise ValueError(f"{card.name} has no energy")
    factor = card.energy.sign * card.energy.scale

    @torch.no_grad()
    def energies(places: Array, time: float) -> Array:
        sample = torch.from_numpy(places.astype(np.float32))[:, :, None, None]
        values: Array = energy(sample=sample, time=torch.full((len(sample),), time)).double().numpy()
        return factor * values

    scales = sorted(card.energy.scales, key=lambda scale: -scale.time)
    maps = energy_maps(energies, {scale.time: (scale.signal, scale.noise) for scale in scales}, grid)
    return {scale.name: maps[scale.time] for scale in scales}


def _checked(samples: npt.ArrayLike) -> Array:
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"points must be (n, 2), got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("points must be finite")
    return values
