"""Langevin dynamics on an energy, once (SPEC 7): `x <- x - (s/temperature) grad U + sqrt(2 s) n`."""

from __future__ import annotations

from math import isfinite, sqrt

from ..bundle import ModelCard
from ..program import INFINITY, LangevinUpdate, Line, Program, noise_draw
from .options import OptionError, SampleOptions, UnsupportedError

MAX_STEPS = 10_000
MAX_COEFFICIENT = 1e30
"""Well within float32, so that a step is not infinite before it is multiplied by a gradient."""


def langevin_step(
    step_size: float,
    temperature: float,
    *,
    max_displacement: float = INFINITY,
    low: float = -INFINITY,
    high: float = INFINITY,
) -> LangevinUpdate:
    """Coefficients of one step with step size s.

    Temperature 0 is exact gradient descent, `x <- x - s grad U` (the limit in which s counts in
    units of the temperature): no noise.
    """
    if temperature == 0.0:
        return LangevinUpdate(1.0, 0.0, -step_size, 0.0, max_displacement, low, high)
    return LangevinUpdate(1.0, 0.0, -step_size / temperature, sqrt(2.0 * step_size), max_displacement, low, high)


def from_epsilon(epsilon: float) -> float:
    """Step size s of the form `(e^2/2) grad U + e n` (Hat Diffusion EBM)."""
    return epsilon * epsilon / 2.0


def from_independent(step: float, noise: float) -> tuple[float, float]:
    """(s, temperature) of the form `x - a grad U + sd n` with independent a and sd: `sd^2/2`, `sd^2/(2a)`."""
    return noise * noise / 2.0, noise * noise / (2.0 * step)


def compile_langevin(card: ModelCard, options: SampleOptions) -> Program:
    """A chain of Langevin steps on the model's energy at its first scale, started from `N(0, I)`."""
    energy, spec = card.energy, card.langevin
    if energy is None or energy.gradient_network is None or spec is None:
        raise UnsupportedError("sampler", f"{card.name} has no energy gradient to run Langevin dynamics on")
    steps = spec.steps if options.steps is None else options.steps
    if not 1 <= steps <= MAX_STEPS:
        raise OptionError("steps", f"must be within 1..{MAX_STEPS}, got {steps}")
    step_size = spec.step_size if options.step_size is None else options.step_size
    if not (isfinite(step_size) and step_size > 0.0):
        raise OptionError("step_size", f"must be positive, got {step_size}")
    temperature = spec.temperature if options.temperature is None else options.temperature
    if not 0.0 <= temperature <= 1e6:
        raise OptionError("temperature", f"must be within [0, 1e6], got {temperature}")
    low, high = (card.image.low, card.image.high) if spec.box else (-INFINITY, INFINITY)
    step = langevin_step(step_size, temperature, max_displacement=spec.max_displacement or INFINITY, low=low, high=high)
    # The network returns its own output's gradient; callers' U is sign * scale * output.
    step = step._replace(gradient=step.gradient * energy.sign * energy.scale)
    if not (abs(step.gradient) <= MAX_COEFFICIENT and step.noise <= MAX_COEFFICIENT):
        field = "temperature" if options.step_size is None else "step_size"
        raise OptionError(field, f"step size {step_size} at temperature {temperature} is more than float32 can hold")
    scalars = {"time": energy.scales[0].time}  # one for all lines, as the update is: a chain may be long
    lines = tuple(
        Line(
            network=energy.gradient_network,
            scalars=scalars,
            noise=noise_draw(i) if step.noise else None,
            update=step,
        )
        for i in range(steps)
    )
    return Program(0.0, 1.0, lines)
