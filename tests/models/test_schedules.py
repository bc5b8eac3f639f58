"""Schedules and grids against the numbers of SPEC 0."""

from __future__ import annotations

import numpy as np
import pytest

from models.card import ScheduleSpec
from models.schedules import alpha_bar, linear_grid, quadratic_grid, time_grid


def test_linear_schedule_ends_where_ddpm_does():
    """abar[1000] of the linear schedule is 4.0358e-5, and abar[0] is exactly 1."""
    table = alpha_bar(ScheduleSpec())
    assert table[0] == 1.0
    assert table[1000] == pytest.approx(4.0358e-5, rel=1e-4)
    assert (np.diff(table) < 0).all()


@pytest.mark.parametrize(("t", "signal", "noise"), [(256, 0.91663, 0.39973), (512, 0.68931, 0.72446)])
def test_cosine_schedule_at_the_truncation_times(t, signal, noise):
    """Amplitude and noise of the cosine schedule at Hat Diffusion's two truncation times."""
    abar = alpha_bar(ScheduleSpec(kind="cosine"))[t]
    assert np.sqrt(abar) == pytest.approx(signal, abs=5e-6)
    assert np.sqrt(1 - abar) == pytest.approx(noise, abs=5e-6)


@pytest.mark.parametrize(
    ("steps", "grid"), [(1, (1000,)), (4, (63, 250, 563, 1000)), (8, (16, 63, 141, 250, 391, 563, 766, 1000))]
)
def test_quadratic_grid(steps, grid):
    """The quadratic sub-sequence is computed in integers."""
    assert quadratic_grid(steps) == grid


@pytest.mark.parametrize("steps", range(1, 64))
def test_quadratic_grid_never_passes_the_last_time(steps):
    """No rounding error pushes the last time past 1000 (a floating-point ceil does at 3, 6 and 12)."""
    grid = quadratic_grid(steps)
    assert grid[-1] == 1000
    assert list(grid) == sorted(set(grid))


def test_quadratic_grid_refuses_to_repeat_times():
    """From 64 steps on the quadratic grid repeats times and is refused; linear spacing is not."""
    with pytest.raises(ValueError, match="repeats"):
        quadratic_grid(64)
    assert len(set(linear_grid(100))) == 100


@pytest.mark.parametrize(("steps", "spacing"), [(0, "linear"), (1001, "linear"), (4, "cubic")])
def test_bad_grids_are_refused(steps, spacing):
    """Steps outside 1..1000 and unknown spacings are errors."""
    with pytest.raises(ValueError, match=r"steps|spacing"):
        time_grid(steps, spacing)
