"""Ancestral sampling on a log-SNR grid, the own sampler of classifier-free guidance (its Algorithm 2; SPEC 6).

Notation: `lam = log(abar / (1 - abar))`, alpha and sigma the amplitudes of signal and noise there, a prime marks the
next, less noisy point of the grid.
"""

from __future__ import annotations

from math import atan, exp, expm1, log, sqrt, tan

import numpy as np

from ..card import ModelCard, ScheduleSpec
from ..program import EnsembleUpdate, Line, Program, Update, noise_draw
from ..schedules import alpha_bar
from .ensemble import check_guidance, check_steps, prediction_range, temperature, unit_interval
from .options import SampleOptions, UnsupportedError
from .prediction import clean_prediction

INTERPOLATION = 0.3
"""v of the reverse variance, the paper's choice for ImageNet 64x64."""


def log_snr_grid(steps: int, low: float, high: float) -> tuple[float, ...]:
    """`lam = -2 log tan(a u + b)` at u = 1 .. 0 in even steps, increasing from `low` to `high`; one step: `low`."""
    b = atan(exp(-high / 2.0))
    a = atan(exp(-low / 2.0)) - b
    return tuple(-2.0 * log(tan(a * (1.0 - i / max(1, steps - 1)) + b)) for i in range(steps))


def ancestral_step(lam: float, following: float, v: float) -> tuple[float, float, float]:
    """Coefficients of state, prediction and noise of one step to the larger log-SNR `following`.

    `mu = r (alpha'/alpha) z + (1-r) alpha' x^`, `r = exp(lam - lam')`, and the variance
    `[(1-r) sigma'^2]^(1-v) [(1-r) sigma^2]^v`.
    """
    r, rest = exp(lam - following), -expm1(lam - following)
    # The variances sigma^2 = sigmoid(-lam) and alpha^2 = sigmoid(lam): 1 - alpha^2 would be 0 where lam is large.
    alpha, alpha_next = sqrt(_sigmoid(lam)), sqrt(_sigmoid(following))
    variance = (rest * _sigmoid(-following)) ** (1.0 - v) * (rest * _sigmoid(-lam)) ** v
    return r * alpha_next / alpha, rest * alpha_next, sqrt(variance)


def time_of(lam: float, schedule: ScheduleSpec) -> float:
    """The time 1..steps of a schedule at which it has this log-SNR, between its integers linear in it."""
    abar = alpha_bar(schedule)[1:]
    table = np.log(abar) - np.log1p(-abar)
    return float(np.interp(-lam, -table, np.arange(1, schedule.steps + 1)))


def compile_ancestral(card: ModelCard, options: SampleOptions) -> Program:
    """Ancestral sampling between the schedule's own ends; `eta` is the interpolation v, .3 by default.

    The paper's range -20..20 is wider than what a discrete schedule was trained on, and at -20 the division by alpha
    magnifies the network's error 2e4 times.
    """
    spec = card.sampling
    if spec is None:
        raise UnsupportedError("model", f"{card.name} has no sampler")
    steps = check_steps(spec, options)
    v = unit_interval("eta", options.eta, INTERPOLATION)
    guidance = check_guidance(card, options)
    abar = alpha_bar(spec.schedule)
    grid = log_snr_grid(steps, _log_snr(float(abar[-1])), _log_snr(float(abar[1])))
    lines = []
    for i, lam in enumerate(grid):
        last = i + 1 == steps
        low, high = prediction_range(card, last=last)
        # The last evaluation gives the clean prediction itself.
        state, prediction, noise = (0.0, 1.0, 0.0) if last else ancestral_step(lam, grid[i + 1], v)
        p_state, p_output = clean_prediction(spec.prediction, _sigmoid(lam))
        rule = EnsembleUpdate(guidance, p_state, p_output, low, high, state, prediction, 0.0, 0.0, noise, 0.0, 0.0)
        lines.append(
            Line(
                network=spec.network,
                scalars={"time": time_of(lam, spec.schedule) - 1.0},
                updates=(Update(rule, noise=None if last else noise_draw(i)),),
                guided=guidance != 0.0,
            )
        )
    return Program(0.0, temperature(options), tuple(lines))


def _log_snr(abar: float) -> float:
    return log(abar) - log(1.0 - abar)


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + exp(-value))
