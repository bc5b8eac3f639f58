"""Langevin dynamics on an energy, once (SPEC 7): `x <- x - (s/temperature) grad U + sqrt(2 s) n`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, sqrt

from ..card import EnergySpec, ImageSpec, LangevinSpec, ModelCard
from ..program import (
    INFINITY,
    LangevinUpdate,
    Line,
    MetropolisUpdate,
    Program,
    Update,
    accept_draw,
    noise_draw,
)
from .options import OptionError, SampleOptions, UnsupportedError

MAX_STEPS = 10_000
MAX_COEFFICIENT = 1e30
"""Well within float32, so that a step is not infinite before it is multiplied by a gradient."""

GRADIENT = 1
"""Where a graph of an energy's gradient has it: output 0 is the energy."""

OPTIONS = frozenset({"step_sizes", "final_step_size", "temperatures", "max_displacement", "low", "high", "metropolis"})
"""Options of the chain by name (`SampleOptions.parameters`), besides `step_size` and `temperature`:

step_sizes, temperatures: one for each step. final_step_size: step sizes go there geometrically from the first.
max_displacement: bound of the norm of `(s/temperature) grad U`. low, high: box that values are clamped to, by default
that of the model where it has one; the last step clamps to the range of images as well.
metropolis: 1 for MALA, whose chain has exactly `exp(-U/temperature)` as its stationary law, on the whole space unless
the caller gives a box: then a proposal is rejected unless all of its values lie inside, and a chain that starts outside
of the box, or with many values on its edge, hardly moves. Its last state is not clipped, which would be another law:
what MALA returns may lie outside the range of images.
"""


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


@dataclass(frozen=True, slots=True)
class Chain:
    """What a chain of Langevin steps does: step size and temperature of each step, clip and box, MALA or not.

    A side of the box that is not there is infinite.
    """

    step_sizes: tuple[float, ...]
    temperatures: tuple[float, ...]
    max_displacement: float
    low: float
    high: float
    metropolis: bool


def compile_langevin(card: ModelCard, options: SampleOptions) -> Program:
    """A chain on the model's energy at its first scale, started from `N(0, I)`."""
    lines = langevin_lines(card, options)
    return Program(0.0, 1.0, lines, steps=steps_of(lines))


def langevin_lines(card: ModelCard, options: SampleOptions, first: int = 0) -> tuple[Line, ...]:
    """The lines of a chain; first: the number of its first line in the program.

    MALA takes one evaluation more than it has steps: the last proposal has to be judged.

    Raises:
        OptionError, UnsupportedError: an option is wrong, or the model has no energy with a gradient.
    """
    energy, spec = card.energy, card.langevin
    if energy is None or energy.gradient_network is None or spec is None:
        raise UnsupportedError("sampler", f"{card.name} has no energy gradient to run Langevin dynamics on")
    chain = _chain(card, spec, options)
    network, scalars = energy.gradient_network, {"time": energy.scales[0].time}  # one for all lines: there may be many
    # The network returns its own output's gradient; callers' U is sign * scale * output.
    factor = energy.sign * energy.scale
    rules: Sequence[LangevinUpdate | MetropolisUpdate] = (
        _metropolis_rules(chain, factor) if chain.metropolis else _langevin_rules(chain, factor, card.image)
    )
    check_size(options, rules)
    return tuple(
        Line(network=network, scalars=scalars, updates=(_update(rule, first + i),)) for i, rule in enumerate(rules)
    )


def steps_of(lines: Sequence[Line]) -> int:
    """How many steps the lines of a chain take: MALA's last one only judges the proposal of the one before."""
    rules = [line.updates[0].rule for line in lines]
    return sum(not isinstance(rule, MetropolisUpdate) or rule.step > 0.0 for rule in rules)


def noise_free_scale(energy: EnergySpec) -> bool:
    """Whether the energy's first scale is of the image itself, so that a chain's state can be scored as it is."""
    scale = energy.scales[0]
    return scale.method == "noised" and (scale.signal, scale.noise) == (1.0, 0.0)


def check_size(options: SampleOptions, rules: Sequence[LangevinUpdate | MetropolisUpdate]) -> None:
    """Raises OptionError for a rule that float32 cannot hold; names an option that makes it so."""
    for rule in rules:
        if isinstance(rule, LangevinUpdate):
            step = rule.noise * rule.noise / 2.0 if rule.noise else abs(rule.gradient)
            largest = max(abs(rule.gradient), rule.noise)
        else:
            step, largest = rule.step, max(abs(rule.beta) * max(1.0, rule.step), rule.step)
        if not largest <= MAX_COEFFICIENT:
            sizes, temperatures = ("step_size", "step_sizes", "final_step_size"), ("temperature", "temperatures")
            # A small step is large only by the temperature that divides it.
            names = (*sizes, *temperatures) if step > 1.0 else (*temperatures, *sizes)
            given = [name for name in names if name in options.given()]
            message = f"step sizes and temperatures give a coefficient of {largest:g}, more than float32 can hold"
            raise OptionError(given[0] if given else names[0], message)


def _langevin_rules(chain: Chain, factor: float, image: ImageSpec) -> list[LangevinUpdate]:
    """One rule for each step; the last one's box lies in the range of images, as its state is what callers get."""
    rules = []
    for step_size, temperature in zip(chain.step_sizes, chain.temperatures, strict=True):
        rule = langevin_step(
            step_size, temperature, max_displacement=chain.max_displacement, low=chain.low, high=chain.high
        )
        rules.append(rule._replace(gradient=rule.gradient * factor))
    rules[-1] = rules[-1]._replace(low=max(chain.low, image.low), high=min(chain.high, image.high))
    return rules


def _metropolis_rules(chain: Chain, factor: float) -> list[MetropolisUpdate]:
    """One rule for each proposal, and one more that judges the last."""
    betas = [factor / temperature for temperature in chain.temperatures]
    proposals = [(0.0, 0.0), *zip(betas, chain.step_sizes, strict=True), (0.0, 0.0)]
    return [MetropolisUpdate(*judged, *made, chain.low, chain.high) for judged, made in pairwise(proposals)]


def _update(rule: LangevinUpdate | MetropolisUpdate, line: int) -> Update:
    if isinstance(rule, LangevinUpdate):
        return Update(rule, output=GRADIENT, noise=noise_draw(line) if rule.noise else None)
    noise, decision = noise_draw(line) if rule.step else None, accept_draw(line) if rule.judged_step else None
    return Update(rule, output=GRADIENT, noise=noise, decision=decision)


def _chain(card: ModelCard, spec: LangevinSpec, options: SampleOptions) -> Chain:
    steps = spec.steps if options.steps is None else options.steps
    if not 1 <= steps <= MAX_STEPS:
        raise OptionError("steps", f"must be within 1..{MAX_STEPS}, got {steps}")
    metropolis = options.whole("metropolis", 0, 0, 1) == 1
    temperatures = _temperatures(spec, options, steps, positive=metropolis)
    low, high = _box(card.image, options, default=spec.box and not metropolis)
    limit = options.number("max_displacement", spec.max_displacement or INFINITY, 1e-12, 1e12)
    if metropolis and options.numbers("max_displacement") is not None:
        raise UnsupportedError(
            "max_displacement", "a clipped proposal has another law than the one that MALA judges by"
        )
    return Chain(_step_sizes(spec, options, steps), temperatures, limit, low, high, metropolis)


def _temperatures(spec: LangevinSpec, options: SampleOptions, steps: int, *, positive: bool) -> tuple[float, ...]:
    """The temperature of each step. positive: 0 is refused."""
    listed = _one_each("temperatures", options, steps)
    if listed is not None and options.temperature is not None:
        raise OptionError("temperatures", "says all temperatures; leave out temperature")
    one = spec.temperature if options.temperature is None else options.temperature
    field, temperatures = ("temperature", (one,) * steps) if listed is None else ("temperatures", listed)
    for value in set(temperatures):
        if not 0.0 <= value <= 1e6:
            raise OptionError(field, f"must be within [0, 1e6], got {value}")
        if positive and value == 0.0:
            raise OptionError(field, "must be positive with metropolis: at 0 there is no law to be exact about")
    return temperatures


def _box(image: ImageSpec, options: SampleOptions, *, default: bool) -> tuple[float, float]:
    """The box of a chain; sides that the caller leaves out are those of images, or infinite without the default.

    MALA has no default box: chains start at noise, or at images with values on the edge of their range. Of a proposal
    in many dimensions some value then nearly always lies outside, and no chain would ever move.
    """
    sides = (image.low, image.high) if default else (-INFINITY, INFINITY)
    low, high = options.number("low", sides[0], -1e6, 1e6), options.number("high", sides[1], -1e6, 1e6)
    if not low < high:
        raise OptionError("low", f"must be below high, got [{low:g}, {high:g}]")
    if not (low < image.high and high > image.low):
        field = "low" if low >= image.high else "high"
        message = f"the box [{low:g}, {high:g}] has nothing of the range of images, [{image.low:g}, {image.high:g}]"
        raise OptionError(field, message)
    return low, high


def _step_sizes(spec: LangevinSpec, options: SampleOptions, steps: int) -> tuple[float, ...]:
    listed = _one_each("step_sizes", options, steps)
    final = options.numbers("final_step_size")
    if listed is not None:
        if options.step_size is not None or final is not None:
            raise OptionError("step_sizes", "says all step sizes; leave out step_size and final_step_size")
        _check_positive("step_sizes", *listed)
        return listed
    first = spec.step_size if options.step_size is None else options.step_size
    _check_positive("step_size", first)
    if final is None:
        return (first,) * steps
    if len(final) != 1:
        raise OptionError("final_step_size", f"must be one number, got {len(final)}")
    _check_positive("final_step_size", *final)
    if steps == 1:
        raise OptionError("final_step_size", "needs a second step to go to; the only one has step_size")
    return tuple(first * (final[0] / first) ** (i / (steps - 1)) for i in range(steps))


def _check_positive(name: str, *values: float) -> None:
    for value in values:
        if not (isfinite(value) and value > 0.0):
            raise OptionError(name, f"must be positive, got {value}")


def _one_each(name: str, options: SampleOptions, steps: int) -> tuple[float, ...] | None:
    values = options.numbers(name)
    if values is not None and len(values) != steps:
        raise OptionError(name, f"must hold one value for each step ({steps}), got {len(values)}")
    return values
