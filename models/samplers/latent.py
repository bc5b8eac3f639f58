"""The energy-based prior of a latent hierarchy: Langevin dynamics on u, one chain for each diffusion step (SPEC 5).

`u_{t+1} = alpha_t u_t + sigma_t n` with `alpha_t^2 + sigma_t^2 = 1`; the prior's energy is `U(u, t) = -F(T(u), t)`.
A chain is K network evaluations, each with a backward pass: T K of them, not 1 to 8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from ..card import ModelCard, SamplingSpec, ScaleSpec
from ..program import INFINITY, LangevinUpdate, Line, Program, Update, assign, noise_draw
from .ensemble import check_steps, image_update
from .options import OptionError, SampleOptions, UnsupportedError

OPTIONS = frozenset({"step_size", "langevin_steps", "hold"})
"""Options besides `temperature`; defaults stand in `ModelCard.sampling.parameters`:

langevin_steps: K. 0 leaves the energies out: the generator with its plain Gaussian prior, which has no step size.
step_size: s in units of sigma_t^2, so that one number suits all diffusion steps; chains are stable below 2.
hold: layers that all samples of a request (with the same label) have in common; 1 is nearest to the image.
"""

PRIOR_GRADIENT, DECODER, ENCODER, LAYER_ENERGY = "prior_gradient", "decoder", "encoder", "layer_energy"
MAX_LANGEVIN_STEPS = 1000


def latent_step(step_size: float, alpha: float, temperature: float = 1.0) -> LangevinUpdate:
    """Coefficients of one step on u_t, whose anchor is u_{t+1}; step_size: s/sigma^2.

    `u <- u - s (grad U(u, t) + (u - alpha u_{t+1})/sigma^2) + temperature sqrt(2 s) n` (eq. 3, 13).
    Temperature is the std of all noise of the prior: with U = 0, u_0 is N(0, temperature^2 I) up to order s/sigma^2.
    """
    s = step_size * (1.0 - alpha * alpha)
    noise = temperature * sqrt(2.0 * s)
    return LangevinUpdate(1.0 - step_size, step_size * alpha, -s, noise, INFINITY, -INFINITY, INFINITY)


def compile_latent(card: ModelCard, options: SampleOptions) -> Program:
    """u_T from N(0, I), a chain for each t = T-1..0 from where the one before it ended, and the image of u_0.

    With held layers there are two passes. All samples share the noise of the first, and so u_0. Then the other layers
    are drawn from N(0, I) again and go through their chains with the held ones as they are.

    Raises:
        OptionError, UnsupportedError: an option is wrong, or the model has no such networks.
    """
    sampling = _sampling(card, PRIOR_GRADIENT, DECODER)
    steps = check_steps(sampling, options)
    temperature = 1.0 if options.temperature is None else options.temperature
    if not 0.0 <= temperature <= 10.0:
        raise OptionError("temperature", f"must be within [0, 10], got {temperature}")
    langevin_steps = options.whole(
        "langevin_steps", int(sampling.parameters["langevin_steps"][0]), 0, MAX_LANGEVIN_STEPS
    )
    if not langevin_steps and options.step_size is not None:
        raise UnsupportedError("step_size", "without Langevin steps (langevin_steps 0) there is no such option")
    chain = _Chain(sampling.parameters["alpha"], langevin_steps, _step_size(sampling, options), temperature)
    held = _held_layers(card, options)
    free = [name for name in card.registers if name not in held]
    lines: list[Line] = []
    if held:
        chain.extend(card, lines, card.registers, shared=True)
        _redraw(card, lines, free, temperature)
    chain.extend(card, lines, free)
    lines.append(Line(DECODER, updates=(image_update(card),)))
    starts = dict.fromkeys(card.registers, temperature)
    return Program(0.0, 0.0, tuple(lines), registers=starts, shared_start=bool(held), steps=steps)


def score_by_inference(card: ModelCard, scale: ScaleSpec) -> Program:
    """`-logsumexp_y sum_{i > above} f_i(z_i, 0)_y` of the u_0 that the encoder infers; above: parameter of the scale.

    Raises:
        UnsupportedError: the model has no encoder, or no energies by layer.
    """
    _sampling(card, ENCODER, LAYER_ENERGY)
    return Program(1.0, 0.0, (_encode_line(card, card.registers, line=0), _score_line(scale)))


def score_by_diffusion(card: ModelCard, scale: ScaleSpec) -> Program:
    """The same energy after a step of the diffusion and back (section 5.2), averaged over `repeats` draws of noise.

    The layers above `above` are inferred and noised to t = 1; those below come from the prior, by its chains down to
    t = 1. Then the chain of t = 0 brings all of them to u_0: hard to do where the two do not go together.

    Raises:
        UnsupportedError: the model has no encoder, or no energies by layer.
    """
    sampling = _sampling(card, ENCODER, LAYER_ENERGY, PRIOR_GRADIENT)
    above, repeats = int(scale.parameters["above"]), int(scale.parameters["repeats"])
    defaults = sampling.parameters
    chain = _Chain(defaults["alpha"], int(defaults["langevin_steps"][0]), defaults["step_size"][0])
    names = list(card.registers)
    lines: list[Line] = []
    for _ in range(repeats):
        if above:
            _redraw(card, lines, names)
            chain.extend(card, lines, names, last=1)
        lines.append(_encode_line(card, names[above:], len(lines), chain.alpha[0]))
        chain.extend(card, lines, names, first=0)
        lines.append(_score_line(scale))
    return Program(1.0, 0.0, tuple(lines))


@dataclass(frozen=True, slots=True)
class _Chain:
    """The chains of all diffusion steps. alpha: of each step t = 0..T-1."""

    alpha: tuple[float, ...]
    steps: int
    step_size: float
    temperature: float = 1.0

    def extend(
        self,
        card: ModelCard,
        lines: list[Line],
        names: Iterable[str],
        *,
        first: int | None = None,
        last: int = 0,
        shared: bool = False,
    ) -> None:
        """Append the chains of t = first..last, by default T-1..0, of the named registers; others stay as they are."""
        names = tuple(names)
        for t in range(len(self.alpha) - 1 if first is None else first, last - 1, -1):
            rule = latent_step(self.step_size, self.alpha[t], self.temperature)
            for step in range(self.steps):
                updates = _updates(card, rule, names, len(lines), shared=shared)
                lines.append(Line(PRIOR_GRADIENT, {"time": float(t)}, updates, sets_anchor=step == 0))


def _updates(
    card: ModelCard, rule: LangevinUpdate, names: Iterable[str], line: int, *, shared: bool = False
) -> tuple[Update, ...]:
    gradients, registers = card.networks[PRIOR_GRADIENT].gradients, list(card.register_shapes())
    return tuple(
        Update(
            rule,
            name,
            output=1 + gradients.index(name),
            noise=noise_draw(line, registers.index(name)) if rule.noise else None,
            shared=shared,
        )
        for name in names
    )


def _redraw(card: ModelCard, lines: list[Line], names: Iterable[str], temperature: float = 1.0) -> None:
    """Append a line that draws the named registers from N(0, temperature^2 I); the network's outputs are not used."""
    rule = LangevinUpdate(0.0, 0.0, 0.0, temperature, INFINITY, -INFINITY, INFINITY)
    lines.append(Line(PRIOR_GRADIENT, {"time": 0.0}, _updates(card, rule, names, len(lines))))


def _encode_line(card: ModelCard, names: Iterable[str], line: int, alpha: float = 1.0) -> Line:
    """The named registers become what the encoder infers of the sample, noised: `u <- alpha u + sigma n`."""
    outputs, registers = [tensor.name for tensor in card.networks[ENCODER].outputs], list(card.register_shapes())
    noise = sqrt(1.0 - alpha * alpha)
    updates = (
        assign(name, outputs.index(name), scale=alpha, noise=noise, draw=noise_draw(line, registers.index(name)))
        for name in names
    )
    return Line(ENCODER, updates=tuple(updates))


def _score_line(scale: ScaleSpec) -> Line:
    return Line(LAYER_ENERGY, {"above": scale.parameters["above"]})


def _sampling(card: ModelCard, *networks: str) -> SamplingSpec:
    needed = {"alpha", "langevin_steps", "step_size"}
    if card.sampling is None or not needed <= set(card.sampling.parameters) or not set(networks) <= set(card.networks):
        raise UnsupportedError("model", f"{card.name} has no energy-based prior of latents")
    return card.sampling


def _step_size(sampling: SamplingSpec, options: SampleOptions) -> float:
    step_size = sampling.parameters["step_size"][0] if options.step_size is None else options.step_size
    if not 0.0 < step_size < 2.0:
        raise OptionError("step_size", f"must be within (0, 2), in units of sigma^2, got {step_size}")
    return step_size


def _held_layers(card: ModelCard, options: SampleOptions) -> tuple[str, ...]:
    """The registers of the layers to be held, which are numbered from 1 in the order of the card's registers."""
    values = options.numbers("hold") or ()
    names = list(card.registers)
    allowed = range(1, len(names) + 1)
    if any(value not in allowed for value in values) or len(set(values)) != len(values):
        listed = ", ".join(f"{value:g}" for value in values)
        raise OptionError("hold", f"must be different layers within 1..{len(names)}, got {listed}")
    if len(values) == len(names):
        raise OptionError("hold", "must leave one layer to be drawn")
    return tuple(names[int(value) - 1] for value in values)
