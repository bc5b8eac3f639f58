"""The sampler of classifier-free guidance: its grid, its variance, and closed forms on data that are known exactly."""

from __future__ import annotations

import itertools
from math import exp, log, sqrt

import numpy as np
import pytest
import torch

from models.card import ScheduleSpec
from models.program import EnsembleUpdate, Program
from models.run import run
from models.samplers import OptionError, SampleOptions, UnsupportedError, compile_sample
from models.samplers.ancestral import ancestral_step, log_snr_grid, time_of
from models.schedules import alpha_bar

from .cards import PLANE, denoiser_card

SCHEDULE = ScheduleSpec()
ABAR = alpha_bar(SCHEDULE)


def log_snr(abar: float) -> float:
    return log(abar / (1 - abar))


def compiled(steps: int, **options: float) -> Program:
    return compile_sample(
        denoiser_card(image=PLANE, clip=False), SampleOptions(sampler="ancestral", steps=steps, **options)
    )


def exact(variance: float, mean: float):
    """The exact eps-prediction for data N(mean, variance); the time between two integers is taken as it comes."""
    table = np.log(ABAR[1:]) - np.log1p(-ABAR[1:])

    def network(sample: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor]:
        lam = np.interp(time.numpy() + 1, np.arange(1, SCHEDULE.steps + 1), table)
        abar = torch.from_numpy(1 / (1 + np.exp(-lam))).reshape(-1, 1, 1, 1)
        return ((1 - abar).sqrt() * (sample - abar.sqrt() * mean) / (abar * variance + 1 - abar),)

    return network


def draw(network, *, count: int, **options: float) -> torch.Tensor:
    card = denoiser_card(image=PLANE, clip=False)
    program = compile_sample(card, SampleOptions(sampler="ancestral", **options))
    return run(program, card, {"denoiser": network}, seed=5, count=count, dtype=torch.float64).state


def test_the_grid_is_the_papers():
    """Its ends are the given ones, it grows, and u = (2 arctan(exp(-lam/2)) - ...) is even along it."""
    grid = log_snr_grid(9, -20.0, 20.0)
    assert grid[0] == pytest.approx(-20.0)
    assert grid[-1] == pytest.approx(20.0)
    angles = np.diff([np.arctan(exp(-lam / 2)) for lam in grid])
    assert (angles < 0).all()
    assert np.ptp(angles) < 1e-12
    assert log_snr_grid(1, -9.0, 9.0) == pytest.approx((-9.0,))


@pytest.mark.parametrize(("lam", "following"), [(-9.0, -8.0), (-2.0, 1.5), (5.0, 20.0), (19.9, 20.0)])
def test_the_variance_interpolates_between_its_ends(lam, following):
    """v = 0 is the posterior's variance at a known clean image, v = 1 the forward process's; the mean is the same."""
    abar, abar_next = 1 / (1 + exp(-lam)), 1 / (1 + exp(-following))
    state, prediction, lower = ancestral_step(lam, following, 0.0)
    assert lower**2 == pytest.approx((1 - exp(lam - following)) * exp(-following) * abar_next, rel=1e-9)
    *_, upper = ancestral_step(lam, following, 1.0)
    assert upper**2 == pytest.approx((1 - exp(lam - following)) * exp(-lam) * abar, rel=1e-9)
    *_, between = ancestral_step(lam, following, 0.3)
    assert between == pytest.approx(lower**0.7 * upper**0.3, rel=1e-9)
    # With the clean image known, a state on the line of the forward process stays on it.
    assert state * sqrt(abar) + prediction == pytest.approx(sqrt(abar_next), rel=1e-9)


def test_known_images_keep_the_forward_process():
    """Data at one point, v = 0: each state has the mean and the variance of q(z | x) at its noise level."""
    variance, grid = 1.0 - float(ABAR[-1]), log_snr_grid(12, log_snr(ABAR[-1]), log_snr(ABAR[1]))
    for lam, following in itertools.pairwise(grid):
        state, _, noise = ancestral_step(lam, following, 0.0)
        variance = state**2 * variance + noise**2
        assert variance == pytest.approx(1 / (1 + exp(following)), rel=1e-6)


def test_a_single_image_is_found_exactly():
    """Data at one point: every prediction is that point, whatever the noise."""
    assert (draw(exact(0.0, 0.7), count=4, steps=6) - 0.7).abs().max() < 1e-9


def test_gaussian_data_come_out_with_their_moments():
    """With the exact network many steps give the data's mean and deviation; a few give them worse."""
    errors = []
    for steps in (4, 100):
        values = draw(exact(0.25, 0.4), count=300, steps=steps)
        errors.append(abs(float(values.std()) - 0.5) + abs(float(values.mean()) - 0.4))
    assert errors[1] < 0.02
    assert errors[1] < errors[0]


def test_times_have_the_log_snr_of_the_grid():
    """The network's time is the one of the schedule: exact at its integers, monotone between them."""
    for t in (1, 2, 500, 999, 1000):
        assert time_of(log_snr(float(ABAR[t])), SCHEDULE) == pytest.approx(t, abs=1e-6)
    times = [line.scalars["time"] for line in compiled(30).lines]
    assert times[0] == pytest.approx(999.0)
    assert times[-1] == pytest.approx(0.0, abs=1e-6)
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_the_last_evaluation_is_the_answer(steps):
    program = compiled(steps)
    last = program.lines[-1].updates[0].rule
    assert isinstance(last, EnsembleUpdate)
    assert (last.state, last.prediction, last.noise) == (0.0, 1.0, 0.0)
    assert program.lines[-1].updates[0].noise is None
    assert (program.nfe, len(program.lines)) == (steps, steps)


def test_guidance_takes_two_rows_a_step():
    program = compiled(5, guidance=1.5)
    assert program.nfe == 10
    assert {line.updates[0].rule.guidance for line in program.lines} == {1.5}


def test_what_it_does_not_take_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="spacing"):
        compile_sample(denoiser_card(), SampleOptions(sampler="ancestral", spacing="linear"))
    with pytest.raises(OptionError, match="eta"):
        compile_sample(denoiser_card(), SampleOptions(sampler="ancestral", eta=1.5))
