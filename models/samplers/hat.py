"""Hat Diffusion EBM: `G(z) = D(alpha G_1(z_1) + sigma z_2)`, then Langevin steps on an energy (SPEC 4)."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite

from ..card import ModelCard
from ..program import INFINITY, LangevinUpdate, Line, Program, Update, assign, latent_draw, noise_draw
from .ensemble import check_steps, image_update
from .langevin import OPTIONS as LANGEVIN_OPTIONS
from .langevin import check_size, langevin_lines, langevin_step, steps_of
from .options import OptionError, SampleOptions, UnsupportedError
from .refine import first_step, with_energies

OPTIONS = frozenset({"stage", "latent_step_size", "prior", "max_displacement"})
"""Options by name (`SampleOptions.parameters`), whose defaults stand in `ModelCard.sampling.parameters`:

stage: 0 for G(z) alone, 1 for steps on Y with z held (eq. 8), 2 for steps on Z and Y in turn (eq. 11).
latent_step_size: step size on z_1 and z_2, in stage 2; `step_size` is that of Y. prior: 1 for the drift -z of a prior
N(0, I), 0 for none. max_displacement: bound of the norm of `(s/temperature) grad H`.
"""

Y, Z1, Z2 = "y", "z1", "z2"
GENERATOR, COMPOSE, TRANSITION = "generator", "compose", "transition"
RESIDUAL_GRADIENT, JOINT_GRADIENT = "residual_gradient", "joint_gradient"
"""Of stage 1's H on the image, and of stage 2's on y, z_1 and z_2. They are two energies: (8) is normalised for each z,
(11) over z as well."""
IMAGE_OUTPUT = 4
"""Where the graph of H(G(z) + y) has the image: after the energy and the gradients of y, z_1 and z_2."""


def compile_hat(card: ModelCard, options: SampleOptions) -> Program:
    """Start z from N(0, I) and run the stage that `options` ask for.

    Raises:
        OptionError, UnsupportedError: an option is wrong, or the model has no such networks.
    """
    if card.sampling is None or not {GENERATOR, RESIDUAL_GRADIENT, JOINT_GRADIENT, COMPOSE} <= set(card.networks):
        raise UnsupportedError("sampler", f"{card.name} has no generator with an energy on its latents")
    stage = options.whole("stage", int(_default(card, "stage")), 0, 2)
    lines, steps = (_generate, _refine_residual, _refine_jointly)[stage](card, options)
    return Program(0.0, 0.0, lines, registers={Z1: 1.0, Z2: 1.0}, steps=steps)


_Stage = tuple[tuple[Line, ...], int]
"""The lines of a stage, and its steps."""


def _generate(card: ModelCard, options: SampleOptions) -> _Stage:
    """Stage 0: the image is G(z)."""
    for name in options.given():
        if name not in ("sampler", "stage"):
            raise UnsupportedError(name, "stage 0 is one evaluation of G(z) and has no such option")
    return (Line(GENERATOR, updates=(image_update(card),)),), 1


def _refine_residual(card: ModelCard, options: SampleOptions) -> _Stage:
    """Stage 1: `g = G(z)`, then steps on Y of `H(g + Y)` from Y = 0, which are steps on X = g + Y from g."""
    for name in ("latent_step_size", "prior"):
        if name in options.given():
            raise UnsupportedError(name, "stage 1 holds z; ask for stage 2")
    chain = langevin_lines(card, options, first=1)
    lines = (replace(line, network=RESIDUAL_GRADIENT) for line in chain)
    return (Line(GENERATOR, updates=(assign(),)), *lines), steps_of(chain)


def _refine_jointly(card: ModelCard, options: SampleOptions) -> _Stage:
    """Stage 2: a step on (z_1, z_2) and a step on y of `H(G(z) + y)` in turn, `steps` of each, from y = 0.

    The sample follows as the image that each line's gradient was taken at, so that a stream has previews.
    """
    if card.sampling is None or card.energy is None:
        raise UnsupportedError("sampler", f"{card.name} has no energy to sample by")
    for name in LANGEVIN_OPTIONS - OPTIONS:
        if name in options.given():
            raise UnsupportedError(name, "stage 2 has no such option; stage 1 has")
    steps = check_steps(card.sampling, options)
    temperature = _default(card, "temperature") if options.temperature is None else options.temperature
    if not 0.0 <= temperature <= 1e6:
        raise OptionError("temperature", f"must be within [0, 1e6], got {temperature}")
    step_size = _default(card, "step_size") if options.step_size is None else options.step_size
    if not (isfinite(step_size) and step_size > 0.0):
        raise OptionError("step_size", f"must be positive, got {step_size}")
    latent_step_size = options.number("latent_step_size", _default(card, "latent_step_size"), 0.0, 1.0)
    prior = options.whole("prior", int(_default(card, "prior")), 0, 1) == 1
    limit = options.number("max_displacement", _default(card, "max_displacement"), 1e-12, 1e12)
    factor = card.energy.sign * card.energy.scale
    residual = _scaled(langevin_step(step_size, temperature, max_displacement=limit), factor)
    latent = _scaled(latent_step(latent_step_size, temperature, limit, prior=prior), factor)
    check_size(options, (residual, latent))
    registers = list(card.register_shapes())
    output = {name: 1 + place for place, name in enumerate(card.networks[JOINT_GRADIENT].gradients)}
    lines: list[Line] = []
    for _ in range(steps):
        for rule, names in ((latent, (Z1, Z2)), (residual, (Y,))):
            place = len(lines)
            updates = [
                Update(rule, name, output[name], noise_draw(place, registers.index(name)) if rule.noise else None)
                for name in names
            ]
            lines.append(Line(JOINT_GRADIENT, updates=(*updates, assign(output=IMAGE_OUTPUT))))
    return (*lines, Line(COMPOSE, updates=(image_update(card),))), steps


def latent_step(step_size: float, temperature: float, max_displacement: float, *, prior: bool) -> LangevinUpdate:
    """Coefficients of a step on z: `z <- z - (s/temperature) grad H - s z + sqrt(2 s) n`, `-s z` if asked for.

    The temperature is the energy's alone: as H goes flat, z returns to N(0, I) and not to a wider Gaussian.
    At temperature 0 there is no noise, and no prior either, which would only draw z to 0.
    """
    rule = langevin_step(step_size, temperature, max_displacement=max_displacement)
    return rule._replace(state=1.0 - step_size) if prior and temperature > 0.0 else rule


def refine_by_transition(card: ModelCard, options: SampleOptions) -> Program:
    """`x -> D(alpha x + sigma n)` with fresh n, `steps` times, from the caller's image (Prop. 3.2.1).

    The last x is clipped to the range of images, so that it can be refined further, or scored, as any image.

    Raises:
        OptionError, UnsupportedError: the steps are wrong, or the model has no such network.
    """
    if card.sampling is None or TRANSITION not in card.networks:
        raise UnsupportedError("method", f"{card.name} has no truncated diffusion to refine with")
    for name in ("temperature", "step_size"):
        if name in options.given():
            raise UnsupportedError(name, "the transition has no such option")
    steps = 1 if options.steps is None else check_steps(card.sampling, options)
    first = first_step(card)
    lines = [Line(TRANSITION, updates=(assign(),), latent=latent_draw(first + i)) for i in range(steps)]
    lines[-1] = replace(lines[-1], updates=(image_update(card),))
    return with_energies(card, tuple(lines), steps)


def _scaled(rule: LangevinUpdate, factor: float) -> LangevinUpdate:
    """The network gives its own output's gradient; callers' U is `sign * scale * output`."""
    return rule._replace(gradient=rule.gradient * factor)


def _default(card: ModelCard, name: str) -> float:
    """The card's default of an option; without one, the one that leaves it out."""
    values = card.sampling.parameters.get(name) if card.sampling is not None else None
    if values is None:
        return {"stage": 1.0, "prior": 0.0, "max_displacement": INFINITY}.get(name, 0.0)
    return values[0]
