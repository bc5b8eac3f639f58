"""Noise schedules and time grids (SPEC 0), in float64 and without torch.

`abar[t]` is the cumulative signal *variance* at step t = 0..steps, `abar[0] = 1`.
The signal amplitude is `sqrt(abar)`, the noise std `sqrt(1 - abar)`; a network's time input is `t - 1`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .card import ScheduleSpec

Array = npt.NDArray[np.float64]


@lru_cache(maxsize=32)
def alpha_bar(spec: ScheduleSpec) -> Array:
    """The table `abar[0..steps]`: float64, `(steps + 1,)`, read-only, strictly decreasing from 1.

    `linear`: product of `1 - beta` with beta from beta_start to beta_end (DDPM).
    `cosine`: `f(t)/f(0)`, `f(t) = cos^2(((t/steps + 0.008)/1.008) pi/2)` (Hat Diffusion EBM; Nichol and Dhariwal).
    """
    if spec.kind == "linear":
        betas = np.linspace(spec.beta_start, spec.beta_end, spec.steps, dtype=np.float64)
        table = np.concatenate(([1.0], np.cumprod(1.0 - betas)))
    else:
        ramp = (np.arange(spec.steps + 1, dtype=np.float64) / spec.steps + 0.008) / 1.008
        table = np.cos(ramp * np.pi / 2) ** 2
        table = table / table[0]
    table.setflags(write=False)
    return table


def quadratic_grid(steps: int, total: int = 1000) -> tuple[int, ...]:
    """`tau[i] = ceil(total i^2 / steps^2)`, i = 1..steps, increasing (DDIM's quadratic sub-sequence).

    In integers: a floating-point ceil gives total + 1 at steps = 3, 6 and 12.

    Raises:
        ValueError: the grid would repeat a time (from steps = 64 on for total = 1000).
    """
    square = steps * steps
    grid = tuple((total * i * i + square - 1) // square for i in range(1, steps + 1))
    if len(set(grid)) != steps:
        raise ValueError(f"quadratic spacing repeats times at {steps} steps; use linear spacing")
    return grid


def linear_grid(steps: int, total: int = 1000) -> tuple[int, ...]:
    """`tau[i] = ceil(total i / steps)`, i = 1..steps, increasing."""
    return tuple((total * i + steps - 1) // steps for i in range(1, steps + 1))


def time_grid(steps: int, spacing: str, total: int = 1000) -> tuple[int, ...]:
    """The times of a sampler, increasing, last one `total`; `spacing` is `quadratic` or `linear`.

    Raises:
        ValueError: steps outside 1..total, unknown spacing, or a grid that repeats times.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"steps must be within 1..{total}, got {steps}")
    if spacing == "quadratic":
        return quadratic_grid(steps, total)
    if spacing == "linear":
        return linear_grid(steps, total)
    raise ValueError(f"spacing must be 'quadratic' or 'linear', got {spacing!r}")
